# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Published models and where they come from
@license Apache-2.0
@notice A publication is one account's word about one model; accounts may differ about the same
        model, and none can speak before another in its name. A task and a round are checked against
        Rounds. A parent is an earlier publication, so lineage has no cycles; that the model really
        was made from it is the publisher's word.
"""

import files

ROUNDS: constant(address) = 0x0000000000000000000000000000000000001004

# As declared blobs: chain/params.py, MAX_BLOB_BYTES.
MAX_MODEL_BYTES: constant(uint256) = 48 * 2**20


struct Publication:
    # From 1; 0 is no publication.
    number: uint256
    publisher: address
    model: files.Blob
    # What made the model, proved; 0 and 0 if nothing is claimed.
    task: uint256
    round: uint256
    # Number of an earlier publication; 0 if none is claimed.
    parent: uint256
    metadata: files.Blob
    # Seconds.
    published_at: uint256


# As Rounds has it.
struct Round:
    state: uint8
    base: files.Blob
    velocity: files.Blob
    pool: uint256
    seed: bytes32
    drawn: uint256
    committed: uint256
    revealed: uint256
    commit_ends: uint256
    reveal_ends: uint256
    extensions: uint256
    model: files.Blob
    saturated: uint256
    pages: uint256


interface Rounds:
    def get_round(task: uint256, round: uint256) -> Round: view


event ModelPublished:
    number: indexed(uint256)
    publisher: indexed(address)
    task: indexed(uint256)
    round: uint256
    model: files.Blob
    parent: uint256
    metadata: files.Blob


model_count: public(uint256)
publications: HashMap[uint256, Publication]
# By the key of the model's name: the publication that `get_model` answers with, and each account's.
leading: HashMap[bytes32, uint256]
numbers: HashMap[bytes32, HashMap[address, uint256]]


@external
def publish_model(
    model: files.Blob,
    task: uint256,
    round: uint256,
    parent: files.Blob,
    metadata: files.Blob,
) -> uint256:
    """
    @notice Publish a model, once per account. `task` and `round` name the round that made it, or
            are both 0; `parent` is a model that somebody has published, or `(0, 0)`.
    @return The publication's number.
    """
    assert not files._is_none(model), "registry: no model"
    files._check_name(model, MAX_MODEL_BYTES)
    files._check_name(metadata, files.MAX_DOCUMENT_BYTES)
    key: bytes32 = files._compute_key(model)
    assert self.numbers[key][msg.sender] == 0, "registry: already published"
    assert (task == 0) == (round == 0), "registry: round without a task"
    if task != 0:
        self._check_origin(model, task, round)

    number: uint256 = self.model_count + 1
    ancestor: uint256 = self._find_parent(parent, key)
    self.model_count = number
    self.publications[number] = Publication(
        number=number,
        publisher=msg.sender,
        model=model,
        task=task,
        round=round,
        parent=ancestor,
        metadata=metadata,
        published_at=block.timestamp,
    )
    self.numbers[key][msg.sender] = number
    leading: uint256 = self.leading[key]
    if leading == 0 or (task != 0 and self.publications[leading].task == 0):
        self.leading[key] = number
    log ModelPublished(
        number=number,
        publisher=msg.sender,
        task=task,
        round=round,
        model=model,
        parent=ancestor,
        metadata=metadata,
    )
    return number


@view
@external
def get_model(model: files.Blob) -> Publication:
    """
    @notice The model's first publication with a proved origin, or else its first one.
    """
    return self.publications[self.leading[files._compute_key(model)]]


@view
@external
def get_publication(number: uint256) -> Publication:
    return self.publications[number]


@view
@external
def find_publication(model: files.Blob, publisher: address) -> uint256:
    """
    @notice The number of that account's publication of the model; 0 if there is none.
    """
    return self.numbers[files._compute_key(model)][publisher]


@view
@internal
def _check_origin(model: files.Blob, task: uint256, round: uint256):
    made: files.Blob = (staticcall Rounds(ROUNDS).get_round(task, round)).model
    assert (
        made.digest == model.digest and made.size == model.size
    ), "registry: not the model of that round"


@view
@internal
def _find_parent(parent: files.Blob, child_key: bytes32) -> uint256:
    if files._is_none(parent):
        return 0
    key: bytes32 = files._compute_key(parent)
    assert key != child_key, "registry: its own parent"
    number: uint256 = self.leading[key]
    assert number > 0, "registry: unknown parent"
    return number
