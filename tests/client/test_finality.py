"""Finality as an auditor sees it: sets followed over epochs, certificates, and lies about both."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from steelyard.chain import replay as replaying
from steelyard.chain.block import Block, decode_block, encode_block
from steelyard.chain.consensus.certificates import (
    Certificate,
    decode_certificate,
    encode_certificate,
)
from steelyard.chain.epochs import EpochSet, decode_epoch_set, encode_epoch_set
from steelyard.chain.errors import InvalidGenesis
from steelyard.chain.execute import Built
from steelyard.chain.following import Checkpoint
from steelyard.chain.genesis import Genesis, build_genesis, encode_genesis
from steelyard.chain.types import Epoch, Hash, Height
from steelyard.client.audit import audit_replay
from steelyard.client.errors import NodeRefused
from steelyard.client.finality import Follower, judge_certificate, verify_certificate
from steelyard.client.finalized import describe_genesis
from steelyard.client.replaying import replay_blocks, run_with_stack
from steelyard.client.rpc import Rpc
from steelyard.client.verdicts import Report, Verdict
from tests.chain.evm_kit import DOMAIN, OTHER_DOMAIN, Chain, alter, make_genesis, make_validator
from tests.chain.following_kit import FOUR, ROOT, certify, make_child, make_set

EPOCH_BLOCKS = 3
NUMBERS = ((0, 1, 2, 3), (4, 5, 6, 7), (0, 5, 2, 7))
"""The validators of each epoch."""
SETS = tuple(make_set(epoch, *numbers) for epoch, numbers in enumerate(NUMBERS))
LAST = len(SETS) * EPOCH_BLOCKS - 1
Lie = Callable[[bytes], bytes]


@cache
def get_genesis() -> Genesis:
    return make_genesis(
        validators=tuple(make_validator(number) for number in NUMBERS[0]),
        epoch_blocks=EPOCH_BLOCKS,
    )


@cache
def get_files() -> dict[str, bytes]:
    """What an honest node serves: eight blocks in three epochs, every one with a certificate."""
    files, parent = {}, ROOT
    for epoch, current in enumerate(SETS):
        files[f"/chain/validators/{epoch}"] = encode_epoch_set(current)
    for height in range(1, LAST + 1):
        epoch = (height - 1) // EPOCH_BLOCKS
        is_last = height % EPOCH_BLOCKS == 0
        block = make_child(parent, SETS[epoch], SETS[epoch + 1] if is_last else None)
        certificate = certify(
            block.hash, current=SETS[epoch], numbers=NUMBERS[epoch], domain=get_genesis().domain
        )
        files[f"/chain/blocks/{height}"] = encode_block(block)
        files[f"/chain/certificates/{height}"] = encode_certificate(certificate)
        parent = block.header
    return files


def get_block(height: int) -> Block:

    return decode_block(get_files()[f"/chain/blocks/{height}"])


class Served(Rpc):
    """A node that serves files, some of them changed, some of them withheld."""

    def __init__(self, files: dict[str, bytes], lies: dict[str, Lie | None] | None = None) -> None:
        self._files, self._lies = files, lies or {}
        self.asked: list[str] = []

    def get_bytes(self, path: str, limit: int = 2**26) -> bytes:
        self.asked.append(path)
        lie = self._lies.get(path, bytes)
        if path not in self._files or lie is None:
            raise NodeRefused("unknown_block", f"no {path} at this node")
        return lie(self._files[path])


class Whole(Served):
    """One that says where its head is."""

    def call(self, method: str, *arguments: Any) -> Any:
        return "0x7"


def verify(
    height: int,
    lies: dict[str, Lie | None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Verdict, str]:
    return verify_certificate(
        Served(get_files(), lies), get_block(height), get_genesis(), checkpoint
    )


# -- honest nodes ----------------------------------------------------------------------------------
@pytest.mark.parametrize("height", range(1, LAST + 1))
def test_every_block_of_every_epoch_is_confirmed(height: int) -> None:
    verdict, detail = verify(height)
    assert verdict is Verdict.YES, detail
    assert detail.startswith("3 of 4 validators signed")


def test_only_the_last_block_of_an_epoch_is_needed_to_follow_it() -> None:
    node = Served(get_files())
    follower = Follower(node, get_genesis())
    assert follower.verify(get_block(LAST))[0] is Verdict.YES
    asked = len(node.asked)
    assert not {f"/chain/blocks/{height}" for height in (1, 2, 4, 5)} & set(node.asked)
    assert follower.verify(get_block(LAST))[0] is Verdict.YES
    assert len(node.asked) == asked + 1


def test_a_descendants_certificate_finalizes_within_the_epoch() -> None:
    files = get_files()
    later = files["/chain/certificates/6"]
    assert verify(4, {"/chain/certificates/4": lambda data: later})[0] is Verdict.YES
    earlier = files["/chain/certificates/4"]
    assert verify(5, {"/chain/certificates/5": lambda data: earlier})[0] is Verdict.REFUTED


def test_a_certificate_far_above_the_block_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest node may have it that way; how far we walk is our own limit."""
    monkeypatch.setattr("steelyard.client.finality.MAX_DESCENDANTS", 1)
    later = get_files()["/chain/certificates/6"]
    assert verify(5, {"/chain/certificates/5": lambda data: later})[0] is Verdict.YES
    verdict, detail = verify(4, {"/chain/certificates/4": lambda data: later})
    assert (verdict, "more than 1 blocks above" in detail) == (Verdict.UNKNOWN, True)


def test_a_checkpoint_saves_the_way_from_genesis() -> None:
    for height in (4, 6):
        node = Served(get_files())
        checkpoint = Checkpoint(Height(height), get_block(height).hash)
        follower = Follower(node, get_genesis(), checkpoint)
        assert follower.verify(get_block(LAST))[0] is Verdict.YES
        assert "/chain/blocks/3" not in node.asked
        verdict, detail = follower.verify(get_block(2))
        assert (verdict, "ancestor" in detail) == (Verdict.YES, True)


def test_an_old_start_is_said() -> None:
    old = Follower(Served(get_files()), get_genesis(), get_unix_seconds=lambda: 10**10)
    assert "--checkpoint" in old.verify(get_block(LAST))[1]
    young = Follower(Served(get_files()), get_genesis(), get_unix_seconds=lambda: 1_000)
    assert "--checkpoint" not in young.verify(get_block(LAST))[1]


# -- lies ------------------------------------------------------------------------------------------
def forge_certificate(data: bytes, **changes: object) -> bytes:
    return encode_certificate(replace(decode_certificate(data), **changes))


def spoil_set(data: bytes) -> bytes:
    """Return the set with one validator replaced by a stranger, as a liar who has its key would."""
    epoch_set = decode_epoch_set(data)
    stranger = replace(epoch_set.members[0], bls_key=make_validator(8).bls_key)
    return encode_epoch_set(EpochSet(epoch_set.epoch, (stranger, *epoch_set.members[1:])))


def sign_again(height: int, *signers: int, epoch: int, numbers: tuple[int, ...]) -> Lie:
    """Return a lie: a certificate by others, or by fewer."""
    domain = get_genesis().domain
    certificate = certify(
        get_block(height).hash, signers, current=SETS[epoch], numbers=numbers, domain=domain
    )
    return lambda data: encode_certificate(certificate)


@pytest.mark.parametrize(
    ("height", "lies", "reason"),
    [
        (1, {"/chain/certificates/1": lambda data: b"\xc0"}, "vote_malformed"),
        (
            1,
            {"/chain/certificates/1": sign_again(1, 0, 1, epoch=0, numbers=NUMBERS[0])},
            "2 of 4 signers, quorum is 3",
        ),
        (
            1,
            {"/chain/certificates/1": sign_again(1, 0, 1, 2, epoch=0, numbers=NUMBERS[1])},
            "did not sign",
        ),
        (
            8,
            {"/chain/certificates/8": sign_again(8, 0, 1, 2, epoch=2, numbers=NUMBERS[0])},
            "did not sign",
        ),
        (
            8,
            {"/chain/certificates/8": sign_again(8, 0, 1, 2, epoch=0, numbers=NUMBERS[0])},
            "epoch 0, not 2",
        ),
        (
            8,
            {"/chain/certificates/3": sign_again(3, 0, 1, epoch=0, numbers=NUMBERS[0])},
            "2 of 4 signers",
        ),
        (8, {"/chain/certificates/6": lambda data: forge_certificate(data, bitmap=b"\x0f")}, "did"),
        (8, {"/chain/validators/1": spoil_set}, "other validators"),
        (8, {"/chain/validators/2": lambda data: encode_epoch_set(SETS[1])}, "segment_epoch"),
        (8, {"/chain/validators/2": lambda data: b"\xc0"}, "epoch_set_malformed"),
        (8, {"/chain/blocks/3": lambda data: encode_block(get_block(2))}, "segment_height"),
        (8, {"/chain/blocks/3": lambda data: data[:-1]}, "block_malformed"),
    ],
)
def test_a_lie_about_who_decided_is_refuted(
    height: int, lies: dict[str, Lie | None], reason: str
) -> None:
    verdict, detail = verify(height, lies)
    assert verdict is Verdict.REFUTED
    assert reason in detail


def test_another_extension_under_the_boundary_block_is_refuted() -> None:
    """A liar may keep the header, and with it the certificate, and rename the next validators."""
    false = EpochSet(Epoch(1), FOUR.members)
    block = get_block(3)
    other = replace(block, extension=replace(block.extension, next_validator_set_hash=false.hash))
    verdict, detail = verify(
        4,
        {
            "/chain/blocks/3": lambda data: encode_block(other),
            "/chain/validators/1": lambda data: encode_epoch_set(false),
        },
    )
    assert verdict is Verdict.REFUTED
    assert "segment_body" in detail


@pytest.mark.parametrize(
    "path", ["/chain/certificates/8", "/chain/certificates/3", "/chain/blocks/6"]
)
def test_a_node_that_withholds_proves_nothing(path: str) -> None:
    assert verify(8, {path: None})[0] is Verdict.UNKNOWN
    assert verify(8, {"/chain/validators/1": None})[0] is Verdict.UNKNOWN


def test_a_chain_that_does_not_hold_the_checkpoint_is_refuted() -> None:
    verdict, detail = verify(8, checkpoint=Checkpoint(Height(4), Hash(b"\1" * 32)))
    assert verdict is Verdict.REFUTED
    assert "checkpoint_mismatch" in detail
    verdict, _ = verify(2, checkpoint=Checkpoint(Height(4), Hash(b"\1" * 32)))
    assert verdict is Verdict.REFUTED


def test_a_checkpoint_names_its_validators() -> None:
    checkpoint = Checkpoint(Height(6), get_block(6).hash)
    verdict, detail = verify(8, {"/chain/validators/2": spoil_set}, checkpoint)
    assert verdict is Verdict.REFUTED
    assert "other validators" in detail


def test_a_block_far_below_the_checkpoint_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.client.finality.MAX_DESCENDANTS", 2)
    checkpoint = Checkpoint(Height(4), get_block(4).hash)
    assert verify(1, checkpoint=checkpoint)[0] is Verdict.UNKNOWN
    assert verify(2, checkpoint=checkpoint)[0] is Verdict.YES


def test_a_forged_certificate_is_judged_without_any_node() -> None:
    block_hash = get_block(1).hash
    forged = certify(block_hash, (0, 1))
    assert judge_certificate(forged, block_hash, FOUR, DOMAIN) == (
        Verdict.REFUTED,
        "2 of 4 signers, quorum is 3",
    )
    honest: Certificate = certify(block_hash)
    assert judge_certificate(honest, block_hash, FOUR, DOMAIN)[0] is Verdict.YES
    assert judge_certificate(honest, block_hash, FOUR, OTHER_DOMAIN)[0] is Verdict.REFUTED


# -- replay ----------------------------------------------------------------------------------------
@cache
def get_executed() -> dict[str, bytes]:
    """Seven blocks in three epochs that really ran, of a chain with one validator."""
    chain, files = Chain(make_genesis(epoch_blocks=EPOCH_BLOCKS)), {}
    for height in range(1, 8):
        built = chain.build()
        current = chain.current
        certificate = certify(
            built.block.hash, (0,), current=current, numbers=(0,), domain=chain.genesis.domain
        )
        files[f"/chain/blocks/{height}"] = encode_block(built.block)
        files[f"/chain/certificates/{height}"] = encode_certificate(certificate)
        chain.import_block(built)
    return files


def replay(
    lies: dict[str, Lie | None] | None = None, checkpoint: Checkpoint | None = None
) -> Report:
    report, node = Report("replay"), Served(get_executed(), lies)
    genesis = make_genesis(epoch_blocks=EPOCH_BLOCKS)
    run_with_stack(lambda: replay_blocks(node, genesis, 7, int, report, checkpoint))
    return report


def test_a_replay_finds_the_validators_of_each_epoch_itself() -> None:
    report = replay()
    assert report.verdict is Verdict.YES, report.checks
    assert "in epoch 2" in report.checks[-1].detail


def test_a_replay_wants_a_certificate_at_the_end_of_each_epoch() -> None:
    """Without, a chain could be invented in which everybody else was removed for absence."""
    stolen = get_executed()["/chain/certificates/2"]
    report = replay({"/chain/certificates/3": lambda data: stolen})
    assert report.verdict is Verdict.REFUTED
    assert report.checks[-1].detail.startswith("block 3: ")
    report = replay({"/chain/certificates/6": None})
    assert report.verdict is Verdict.UNKNOWN
    assert report.checks[-1].detail.startswith("block 6: ")


def test_a_replay_names_the_height_that_hands_over_to_other_validators() -> None:

    def hand_to_others(data: bytes) -> bytes:
        built = Built(decode_block(data), None)  # type: ignore[arg-type]
        return encode_block(alter(built, next_validator_set_hash=SETS[1].hash).block)

    report = replay({"/chain/blocks/3": hand_to_others})
    assert report.verdict is Verdict.REFUTED
    assert "height 3 differs: block_next_set" in report.checks[-1].detail


def test_a_replay_meets_the_checkpoint() -> None:

    block = decode_block(get_executed()["/chain/blocks/5"])
    assert replay(checkpoint=Checkpoint(Height(5), block.hash)).verdict is Verdict.YES
    report = replay(checkpoint=Checkpoint(Height(5), Hash(b"\1" * 32)))
    assert report.verdict is Verdict.REFUTED
    assert report.checks[-1].name == "checkpoint"


def test_a_replay_that_ends_below_the_checkpoint_says_so() -> None:
    """Else a liar with another chain would only need to claim a low head."""
    report = replay(checkpoint=Checkpoint(Height(8), Hash(b"\1" * 32)))
    assert report.verdict is Verdict.UNKNOWN
    assert "ended below it, at block 7" in report.summary


def test_a_replay_that_may_not_reach_the_checkpoint_says_what_to_change() -> None:
    node = Whole({"/chain/genesis": encode_genesis(make_genesis(epoch_blocks=EPOCH_BLOCKS))})
    report = audit_replay(node, checkpoint=Checkpoint(Height(5), Hash(b"\1" * 32)), last_height=4)
    assert report.verdict is Verdict.UNKNOWN
    assert "leave --until out, or name 5 or more" in report.summary
    assert not any(check.name == "execution" for check in report.checks)


def test_an_audit_names_both_hashes_of_a_genesis_as_nodes_do() -> None:
    genesis = make_genesis(epoch_blocks=EPOCH_BLOCKS)
    said = describe_genesis(genesis)
    assert f"genesis_document_hash 0x{genesis.hash.hex()}" in said
    assert f"genesis_hash 0x{build_genesis(genesis).block.hash.hex()}" in said


def test_without_the_evm_only_the_hash_of_the_document_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "steelyard.chain.evm", None)
    said = describe_genesis(make_genesis(epoch_blocks=EPOCH_BLOCKS))
    assert "genesis_document_hash" in said
    assert "genesis_hash" not in said


def test_a_checkpoint_at_genesis_is_met_too() -> None:
    block_hash = build_genesis(make_genesis(epoch_blocks=EPOCH_BLOCKS)).block.hash
    assert replay(checkpoint=Checkpoint(Height(0), block_hash)).verdict is Verdict.YES
    report = replay(checkpoint=Checkpoint(Height(0), Hash(b"\1" * 32)))
    assert report.verdict is Verdict.REFUTED


def test_a_replay_is_told_of_rule_changes_that_it_must_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rules of a chain whose operators scheduled a change are not those of its genesis."""
    known = frozenset({"test-only"})
    monkeypatch.setattr("steelyard.chain.genesis_document.KNOWN_FORKS", known)
    seen: list[tuple[tuple[str, int], ...]] = []
    apply_block = replaying.apply_block

    def spy(*arguments: Any) -> Any:
        seen.append(arguments[2].forks)
        return apply_block(*arguments)

    monkeypatch.setattr(replaying, "apply_block", spy)
    report, genesis = Report("replay"), make_genesis(epoch_blocks=EPOCH_BLOCKS)
    node = Served(get_executed())
    run_with_stack(lambda: replay_blocks(node, genesis, 7, int, report, upgrades={"test-only": 4}))
    assert report.verdict is Verdict.YES
    assert set(seen) == {(("test-only", 4),)}


def test_a_replay_with_rule_changes_that_nobody_knows_does_not_begin() -> None:
    node = Whole({"/chain/genesis": encode_genesis(make_genesis(epoch_blocks=EPOCH_BLOCKS))})
    with pytest.raises(InvalidGenesis):
        audit_replay(node, upgrades={"tomorrow": 4})
