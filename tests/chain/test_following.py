"""Following: segments, the handover between epochs, checkpoints; and every lie about them."""

from dataclasses import replace

import pytest

from steelyard.chain import bls, segments
from steelyard.chain.block import Block, Header, Withdrawal, compute_withdrawals_root
from steelyard.chain.consensus.certificates import Certificate, encode_bitmap
from steelyard.chain.consensus.votes import NO_HASH, Kind
from steelyard.chain.epochs import EpochSet
from steelyard.chain.following import (
    Checkpoint,
    check_checkpoint,
    check_checkpoint_age,
    check_finality,
    check_handover,
    check_named_set,
    check_segment,
    compute_age_limit,
    describe_quorum,
    parse_checkpoint,
)
from steelyard.chain.segments import (
    FinalBlocks,
    InvalidSegment,
    decode_segment,
    encode_final_blocks,
)
from steelyard.chain.types import Address, Epoch, Hash, Height, Power, View

from .evm_kit import DOMAIN, OTHER_DOMAIN
from .following_kit import FOUR, OTHERS, ROOT, certify, make_blocks, make_child

NEW = (4, 5, 6, 7)
"""Numbers of the validators in OTHERS."""
EPOCH_BLOCKS = 4


def refuse(
    blocks: list[Block], certificate: Certificate, current: EpochSet = FOUR, head: Header = ROOT
) -> str:
    """Return the code with which a segment is refused."""
    with pytest.raises(InvalidSegment) as caught:
        check_segment(head, blocks, certificate, current, DOMAIN)
    return caught.value.code


# -- segments --------------------------------------------------------------------------------------
def test_a_segment_is_final_if_its_last_block_is() -> None:
    blocks = make_blocks(3)
    certificate = certify(blocks[-1].hash)
    check_segment(ROOT, blocks, certificate, FOUR, DOMAIN)
    check_segment(blocks[0].header, blocks[1:], certificate, FOUR, DOMAIN)


def test_the_boundary_block_may_end_a_segment_and_the_next_set_goes_on() -> None:
    blocks = make_blocks(3)
    blocks.append(make_child(blocks[-1].header, FOUR, OTHERS))
    check_segment(ROOT, blocks, certify(blocks[-1].hash), FOUR, DOMAIN)
    after = make_blocks(1, OTHERS, blocks[-1].header)
    certificate = certify(after[0].hash, current=OTHERS, numbers=NEW)
    check_segment(blocks[-1].header, after, certificate, OTHERS, DOMAIN)


def test_a_segment_without_blocks_is_refused() -> None:
    assert refuse([], certify(ROOT.hash)) == "segment_malformed"


def test_a_segment_of_more_blocks_than_may_come_together_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = make_blocks(3)
    data = encode_final_blocks(FinalBlocks(tuple(blocks), certify(blocks[-1].hash)))
    monkeypatch.setattr(segments, "MAX_TOGETHER_BLOCKS", 3)
    assert len(decode_segment(data).blocks) == 3
    monkeypatch.setattr(segments, "MAX_TOGETHER_BLOCKS", 2)
    monkeypatch.setattr(segments, "decode_block", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(InvalidSegment, match="segment_malformed: too many items"):
        decode_segment(data)


def test_a_block_that_is_no_child_breaks_the_segment() -> None:
    blocks = make_blocks(3)
    certificate = certify(blocks[-1].hash)
    assert refuse(blocks[1:], certificate) == "segment_link"
    assert refuse([blocks[0], blocks[2]], certificate) == "segment_link"
    assert refuse([*blocks[:2], blocks[1]], certificate) == "segment_link"


def test_a_block_at_another_height_breaks_the_segment() -> None:
    (block,) = make_blocks(1)
    high = replace(block, header=replace(block.header, height=Height(2)))
    assert refuse([high], certify(high.hash)) == "segment_height"


def test_another_body_under_a_final_header_is_refused() -> None:
    (block,) = make_blocks(1)
    certificate = certify(block.hash)
    paid = (Withdrawal(0, 0, Address(bytes(20)), 1),)
    extension = replace(block.extension, next_validator_set_hash=OTHERS.hash)
    for liar in (
        replace(block, transactions=(b"\x02",)),
        replace(block, withdrawals=paid),
        replace(block, extension=extension),
    ):
        assert liar.hash == block.hash
        assert refuse([liar], certificate) == "segment_body"
    header = replace(block.header, withdrawals_root=compute_withdrawals_root(paid))
    assert refuse([replace(block, header=header, withdrawals=paid)], certificate) == (
        "segment_certificate"
    )


def test_a_segment_never_crosses_the_end_of_an_epoch() -> None:
    blocks = make_blocks(3)
    blocks.append(make_child(blocks[-1].header, FOUR, OTHERS))
    blocks += make_blocks(1, OTHERS, blocks[-1].header)
    by_old, by_new = (
        certify(blocks[-1].hash),
        certify(blocks[-1].hash, current=OTHERS, numbers=NEW),
    )
    for certificate in (by_old, by_new):
        assert refuse(blocks, certificate) == "segment_epoch"
        assert refuse(blocks, certificate, OTHERS) == "segment_epoch"


def test_no_block_follows_one_that_hands_over_to_other_validators() -> None:
    first = make_child(ROOT, FOUR, OTHERS)
    second = make_child(first.header, FOUR)
    assert refuse([first, second], certify(second.hash)) == "segment_boundary"


def test_a_certificate_of_too_few_is_refused_and_says_how_many_are_needed() -> None:
    blocks = make_blocks(1)
    certificate = certify(blocks[0].hash, (1, 3))
    with pytest.raises(InvalidSegment, match="2 of 4 signers, quorum is 3") as caught:
        check_segment(ROOT, blocks, certificate, FOUR, DOMAIN)
    assert caught.value.code == "segment_certificate"


def test_a_quorum_is_counted_in_power() -> None:
    rich = replace(FOUR.members[0], power=Power(10**22))
    unequal = EpochSet(Epoch(0), (rich, *FOUR.members[1:]))
    blocks = make_blocks(1, unequal)
    certificate = certify(blocks[0].hash, (1, 2, 3))
    assert refuse(blocks, certificate, unequal) == "segment_certificate"
    assert "3 of 4 signers with power" in describe_quorum(certificate, unequal.validators)
    check_segment(ROOT, blocks, certify(blocks[0].hash, (0,)), unequal, DOMAIN)


def forge(blocks: list[Block]) -> dict[str, Certificate]:
    """Return certificates that look like one of the last block, and are not."""
    honest, last = certify(blocks[-1].hash), blocks[-1].hash
    more = encode_bitmap((0, 1, 2, 3), 4)
    epoch_1 = replace(FOUR, epoch=Epoch(1))
    return {
        "of another set": certify(last, numbers=NEW),
        "of another epoch": certify(last, current=epoch_1),
        "of an epoch that it only claims": replace(
            honest, statement=replace(honest.statement, view=View(10))
        ),
        "of another genesis": certify(last, domain=OTHER_DOMAIN),
        "that notarizes": certify(last, kind=Kind.NOTARIZE),
        "that nullifies": certify(NO_HASH, kind=Kind.NULLIFY),
        "for the block before": certify(blocks[-2].hash),
        "with a signer who did not sign": replace(honest, bitmap=more),
        "with a bitmap for more validators": replace(honest, bitmap=honest.bitmap + b"\0"),
        "with a bit of nobody": replace(honest, bitmap=b"\x17"),
        "without signers": replace(honest, bitmap=b"\0"),
        "with another signature": replace(honest, signature=certify(ROOT.hash).signature),
        "with a signature of infinity": replace(
            honest, signature=bls.Signature(bls.INFINITY_SIGNATURE)
        ),
        "with no point for a signature": replace(honest, signature=bls.Signature(b"\xff" * 96)),
    }


@pytest.mark.parametrize("lie", sorted(forge(make_blocks(2))))
def test_a_certificate_is_refused(lie: str) -> None:
    blocks = make_blocks(2)
    assert refuse(blocks, forge(blocks)[lie]) == "segment_certificate"


# -- the handover ----------------------------------------------------------------------------------
def get_boundary_block() -> Block:
    return make_child(make_blocks(EPOCH_BLOCKS - 1)[-1].header, FOUR, OTHERS)


def hand_over(
    block: Block, certificate: Certificate, following: EpochSet = OTHERS, current: EpochSet = FOUR
) -> None:
    check_handover(
        block.header,
        block.extension,
        certificate,
        current,
        following,
        domain=DOMAIN,
        epoch_blocks=EPOCH_BLOCKS,
    )


def test_the_boundary_block_and_its_certificate_name_the_next_validators() -> None:
    block = get_boundary_block()
    hand_over(block, certify(block.hash))
    check_finality(certify(block.hash), block.hash, FOUR, DOMAIN)


def test_a_false_handover_is_refused() -> None:
    block = get_boundary_block()
    honest = certify(block.hash)
    inside = make_child(make_blocks(1)[-1].header, FOUR, OTHERS)
    extension = replace(block.extension, next_validator_set_hash=FOUR.hash)
    poorer = replace(OTHERS.members[0], power=Power(1))
    redirected = replace(OTHERS.members[0], fee_recipient=Address(b"\xee" * 20))
    after = replace(FOUR, epoch=Epoch(1))
    cases: list[tuple[str, Block, Certificate, EpochSet, EpochSet]] = [
        ("segment_height", inside, certify(inside.hash), OTHERS, FOUR),
        ("segment_height", block, honest, replace(OTHERS, epoch=Epoch(2)), after),
        ("segment_body", replace(block, extension=extension), honest, after, FOUR),
        ("segment_epoch", block, honest, replace(OTHERS, epoch=Epoch(2)), FOUR),
        ("segment_epoch", block, honest, replace(OTHERS, epoch=Epoch(0)), FOUR),
        ("segment_boundary", block, honest, after, FOUR),
        ("segment_boundary", block, honest, EpochSet(Epoch(1), OTHERS.members[:3]), FOUR),
        ("segment_boundary", block, honest, EpochSet(Epoch(1), OTHERS.members[::-1]), FOUR),
        (
            "segment_boundary",
            block,
            honest,
            EpochSet(Epoch(1), (poorer, *OTHERS.members[1:])),
            FOUR,
        ),
        (
            "segment_boundary",
            block,
            honest,
            EpochSet(Epoch(1), (redirected, *OTHERS.members[1:])),
            FOUR,
        ),
        ("segment_certificate", block, certify(block.hash, (0, 1)), OTHERS, FOUR),
        ("segment_certificate", block, certify(block.hash, numbers=NEW), OTHERS, FOUR),
        ("segment_certificate", block, certify(inside.hash), OTHERS, FOUR),
    ]
    for code, wrong, certificate, following, current in cases:
        with pytest.raises(InvalidSegment) as caught:
            hand_over(wrong, certificate, following, current)
        assert caught.value.code == code


def test_a_trusted_block_names_who_decides_the_next_one() -> None:
    inside, last = make_child(ROOT, FOUR), get_boundary_block()
    check_named_set(inside.header, inside.extension, FOUR, EPOCH_BLOCKS)
    check_named_set(last.header, last.extension, OTHERS, EPOCH_BLOCKS)
    cases = [
        ("segment_epoch", inside, inside.extension, replace(FOUR, epoch=Epoch(1))),
        ("segment_boundary", inside, inside.extension, replace(OTHERS, epoch=Epoch(0))),
        ("segment_epoch", last, last.extension, replace(OTHERS, epoch=Epoch(0))),
        ("segment_boundary", last, last.extension, replace(FOUR, epoch=Epoch(1))),
        ("segment_body", last, inside.extension, replace(FOUR, epoch=Epoch(1))),
    ]
    for code, block, extension, named in cases:
        with pytest.raises(InvalidSegment) as caught:
            check_named_set(block.header, extension, named, EPOCH_BLOCKS)
        assert caught.value.code == code


# -- checkpoints -----------------------------------------------------------------------------------
def test_a_checkpoint_is_a_height_and_a_hash() -> None:
    checkpoint = Checkpoint(ROOT.height, ROOT.hash)
    assert parse_checkpoint(str(checkpoint)) == checkpoint
    assert parse_checkpoint(f"0:{ROOT.hash.hex()}") == checkpoint
    check_checkpoint(checkpoint, ROOT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "7:",
        "7:0x12",
        ":" + "00" * 32,
        "-1:" + "00" * 32,
        "٣:" + "00" * 32,
        "9" * 19 + ":" + "00" * 32,
        "7:" + "0 " * 32,
        "7:" + "00 " * 32,
        "7:" + "zz" * 32,
        "7:" + "00" * 33,
        "7:" + "00" * 32 + ":",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(InvalidSegment) as caught:
        parse_checkpoint(text)
    assert caught.value.code == "checkpoint_malformed"


def test_a_block_that_is_not_the_checkpoints_is_refused() -> None:
    for checkpoint in (
        Checkpoint(Height(1), ROOT.hash),
        Checkpoint(ROOT.height, Hash(b"\1" * 32)),
    ):
        with pytest.raises(InvalidSegment) as caught:
            check_checkpoint(checkpoint, ROOT)
        assert caught.value.code == "checkpoint_mismatch"


def test_a_checkpoint_is_too_old_well_before_validators_have_their_stakes_back() -> None:
    limit = compute_age_limit(1_000)
    assert limit == 500
    check_checkpoint_age(ROOT, ROOT.timestamp + limit, 1_000)
    check_checkpoint_age(ROOT, ROOT.timestamp - 5, 1_000)
    with pytest.raises(InvalidSegment) as caught:
        check_checkpoint_age(ROOT, ROOT.timestamp + limit + 1, 1_000)
    assert caught.value.code == "checkpoint_too_old"
