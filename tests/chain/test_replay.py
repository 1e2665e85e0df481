"""Replaying a chain: yes, or the first height that differs and what differs there."""

from dataclasses import replace

import pytest

from steelyard.chain import precompile
from steelyard.chain.block import Block
from steelyard.chain.errors import UnavailableBlob
from steelyard.chain.evm import FedavgHost
from steelyard.chain.params import FEDAVG_ADDRESS
from steelyard.chain.replay import NoBlobs, Replayed, replay
from steelyard.chain.types import Hash

from .evm_kit import KEYS, Blobs, Chain, Draft, declare, name_blob, run_with_stack, sign

BLOB = b"an update of a client"
MADE = b"a model that a block made"


def make_blocks(chain: Chain, *blocks: list[bytes]) -> list[Block]:
    made = []
    for raw in blocks:
        built = chain.build(*raw)
        assert not built.outcome.refused
        chain.import_block(built)
        made.append(built.block)
    return made


def run(chain: Chain, blocks: list[Block], blobs: Blobs | NoBlobs | None = None) -> list[Replayed]:
    return run_with_stack(lambda: list(replay(chain.genesis, blocks, blobs or NoBlobs())))


def make_chain() -> tuple[Chain, list[Block]]:
    chain = Chain()
    blocks = make_blocks(
        chain,
        [sign(Draft()), sign(Draft(), KEYS[1])],
        [],
        [sign(Draft(nonce=1, value=5))],
        [sign(Draft(nonce=2))],
    )
    return chain, blocks


def test_an_honest_chain_replays() -> None:
    chain, blocks = make_chain()
    replayed = run(chain, blocks)
    assert [item.difference for item in replayed] == [None] * 4
    assert [item.block_hash for item in replayed] == [block.hash for block in blocks]


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("state_root", "block_state_root"),
        ("receipts_root", "block_receipts_root"),
        ("transactions_root", "block_transactions_root"),
        ("parent_hash", "block_parent"),
    ],
)
def test_the_first_difference_is_named_and_ends_the_replay(field: str, code: str) -> None:
    chain, blocks = make_chain()
    header = replace(blocks[2].header, **{field: Hash(b"\1" * 32)})
    blocks[2] = replace(blocks[2], header=header)
    replayed = run(chain, blocks)
    assert [item.difference for item in replayed] == [None, None, code]
    assert replayed[-1].height == 3
    assert replayed[-1].message


def test_a_chain_of_another_genesis_differs_at_once() -> None:
    chain, blocks = make_chain()
    other = replace(chain.genesis, name="other")
    replayed = run_with_stack(lambda: list(replay(other, blocks, NoBlobs())))
    assert [item.difference for item in replayed] == ["block_parent"]


def test_a_replay_uses_made_blobs_and_asks_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(host: FedavgHost, data: bytes) -> bytes:
        if data[0] == 1:
            host.write_blob(name_blob(MADE), MADE)
            return b""
        name = name_blob(MADE if data[0] == 2 else BLOB)
        return bytes(host.read_blob(name))

    monkeypatch.setattr(precompile, "call", fake)
    chain = Chain(blobs=Blobs(BLOB))
    blocks = make_blocks(
        chain,
        [sign(Draft(nonce=0, to=FEDAVG_ADDRESS, data=b"\1"))],
        [sign(Draft(nonce=1, to=FEDAVG_ADDRESS, data=b"\2"))],
        [sign(Draft(nonce=2, to=FEDAVG_ADDRESS, data=b"\3", access_list=declare(name_blob(BLOB))))],
    )
    assert len(run(chain, blocks, Blobs(BLOB))) == 3
    assert len(run(chain, blocks[:2])) == 2
    with pytest.raises(UnavailableBlob):
        run(chain, blocks)
