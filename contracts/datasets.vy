# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Encrypted datasets, and who was given their keys
@license Apache-2.0
@notice The content is encrypted before it is named here, and is kept elsewhere. Who wants to read
        it sends a public key; the owner answers with the dataset's key, wrapped to that public key
        off the chain. The chain sees neither keys nor data, and cannot check what was wrapped. A
        key that was given cannot be taken back.
"""

import files

MAX_CONTENT_BYTES: constant(uint256) = 2**40
MAX_WRAPPED_BYTES: constant(uint256) = 128

# States of an access. 0 is an account that never asked.
REQUESTED: constant(uint8) = 1
GRANTED: constant(uint8) = 2
DENIED: constant(uint8) = 3


struct Dataset:
    owner: address
    metadata: files.Blob
    content: files.Blob
    # Seconds; 0 is never.
    published_at: uint256
    retired_at: uint256


struct Access:
    state: uint8
    # X25519, the requester's.
    public_key: bytes32
    # The dataset's key, readable by the owner of `public_key`; empty unless granted.
    wrapped: Bytes[MAX_WRAPPED_BYTES]


event DatasetPublished:
    dataset: indexed(uint256)
    owner: indexed(address)
    metadata: files.Blob
    content: files.Blob


event DatasetRetired:
    dataset: indexed(uint256)


event AccessRequested:
    dataset: indexed(uint256)
    requester: indexed(address)
    public_key: bytes32


event AccessGranted:
    dataset: indexed(uint256)
    requester: indexed(address)
    public_key: bytes32
    wrapped: Bytes[MAX_WRAPPED_BYTES]


event AccessDenied:
    dataset: indexed(uint256)
    requester: indexed(address)


dataset_count: public(uint256)
datasets: HashMap[uint256, Dataset]
accesses: HashMap[uint256, HashMap[address, Access]]


@external
def publish_dataset(metadata: files.Blob, content: files.Blob) -> uint256:
    """
    @notice Publish a dataset that the caller owns. Without `content` it is a description of data
            that never leaves its holder, and nobody can ask for it.
    @return The dataset's number; the first is 1.
    """
    assert not files._is_none(metadata), "registry: no metadata"
    files._check_name(metadata, files.MAX_DOCUMENT_BYTES)
    files._check_name(content, MAX_CONTENT_BYTES)

    dataset: uint256 = self.dataset_count + 1
    self.dataset_count = dataset
    self.datasets[dataset] = Dataset(
        owner=msg.sender,
        metadata=metadata,
        content=content,
        published_at=block.timestamp,
        retired_at=0,
    )
    log DatasetPublished(dataset=dataset, owner=msg.sender, metadata=metadata, content=content)
    return dataset


@external
def retire_dataset(dataset: uint256):
    """
    @notice Take no more requests and give no more keys. What was granted stays readable.
    """
    self._check_owner(dataset)
    self._check_offered(dataset)

    self.datasets[dataset].retired_at = block.timestamp
    log DatasetRetired(dataset=dataset)


@external
def request_access(dataset: uint256, public_key: bytes32):
    """
    @notice Ask the owner for the dataset's key. Whoever was denied, or lost its private key, may
            ask again.
    """
    owner: address = self.datasets[dataset].owner
    assert owner != empty(address), "registry: no such dataset"
    self._check_offered(dataset)
    assert not files._is_none(self.datasets[dataset].content), "registry: nothing to read"
    assert owner != msg.sender, "registry: already its owner"
    assert public_key != empty(bytes32), "registry: no public key"
    assert (
        self.accesses[dataset][msg.sender].state != REQUESTED
    ), "registry: already requested"

    self.accesses[dataset][msg.sender] = Access(
        state=REQUESTED, public_key=public_key, wrapped=b""
    )
    log AccessRequested(dataset=dataset, requester=msg.sender, public_key=public_key)


@external
def grant_access(dataset: uint256, requester: address, wrapped: Bytes[MAX_WRAPPED_BYTES]):
    """
    @notice Give `requester` the dataset's key, wrapped to the public key of its request.
    """
    self._check_owner(dataset)
    self._check_offered(dataset)
    self._check_requested(dataset, requester)
    assert len(wrapped) > 0, "registry: no key"

    self.accesses[dataset][requester].state = GRANTED
    self.accesses[dataset][requester].wrapped = wrapped
    log AccessGranted(
        dataset=dataset,
        requester=requester,
        public_key=self.accesses[dataset][requester].public_key,
        wrapped=wrapped,
    )


@external
def deny_access(dataset: uint256, requester: address):
    """
    @notice Answer a request with no.
    """
    self._check_owner(dataset)
    self._check_requested(dataset, requester)

    self.accesses[dataset][requester].state = DENIED
    log AccessDenied(dataset=dataset, requester=requester)


@view
@external
def get_dataset(dataset: uint256) -> Dataset:
    return self.datasets[dataset]


@view
@external
def get_access(dataset: uint256, requester: address) -> Access:
    return self.accesses[dataset][requester]


@view
@internal
def _check_owner(dataset: uint256):
    assert msg.sender == self.datasets[dataset].owner, "registry: not the owner"


@view
@internal
def _check_offered(dataset: uint256):
    assert self.datasets[dataset].retired_at == 0, "registry: retired"


@view
@internal
def _check_requested(dataset: uint256, requester: address):
    assert self.accesses[dataset][requester].state == REQUESTED, "registry: not requested"
