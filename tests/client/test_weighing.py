"""A round's arithmetic in words: it says what the chain's own rule gives, to the last unit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain.params import WEIGHT_TOTAL
from steelyard.chain.robust import decide
from steelyard.chain.rules import Flag, Rule, RuleKind
from steelyard.client.drafting import draft_task
from steelyard.client.errors import NodeRefused
from steelyard.client.records import Parameters, SubmissionInfo
from steelyard.client.weighing import (
    check_record,
    compute_payment,
    describe_compensated,
    describe_weighing,
    weigh,
    weigh_compensated,
)

from .conftest import CHAIN, make_task
from .ledger import make_blob_name

SOMEBODY = "0x" + "11" * 20
NAMES = [make_blob_name(bytes([i])) for i in range(20)]


def make_terms(**changes: Any) -> Parameters:
    return draft_task(make_task(**changes), **CHAIN).parameters


def make_record(weights: list[int], max_share: int = WEIGHT_TOTAL, **changes: Any) -> dict:
    """What the contract writes down about these updates, averaged."""
    names = NAMES[: len(weights)]
    made = decide(Rule(RuleKind.WEIGHTED_MEAN, 0, max_share), names, weights, None)
    record = {
        "clients": [name.digest[:20] for name in names],
        "origins": [5] * len(weights),
        "updates": names,
        "raw_weights": weights,
        "shares": list(made.shares),
        "scores": [0] * len(weights),
        "flags": list(made.flags),
        "pool": 1_000_003,
    }
    return record | changes


def explain(
    record: dict, terms: Parameters | None = None, samples: int = 0, norm2: int = 0
) -> list[tuple[str, ...]]:
    """The lines of each update of round 5."""
    terms = make_terms() if terms is None else terms
    payment = compute_payment(record, terms)
    return [
        describe_weighing(
            one, payment, terms, 5, SubmissionInfo(b"\1", one.origin, NAMES[0], samples, 77), norm2
        )
        for one in weigh(record, terms)
    ]


@given(
    st.lists(st.integers(0, 2**60), min_size=1, max_size=20).filter(any),
    st.integers(1, WEIGHT_TOTAL),
)
def test_the_words_give_the_shares_that_the_rule_gave(weights: list[int], cap: int) -> None:
    told = explain(make_record(weights, cap))
    assert not any("but the record says" in line for lines in told for line in lines)


@given(st.lists(st.integers(1, 2**60), min_size=2, max_size=20), st.data())
def test_a_share_that_the_weights_do_not_give_is_told(weights: list[int], data: Any) -> None:
    record = make_record(weights)
    place = data.draw(st.integers(0, len(weights) - 1))
    record["shares"][place] += data.draw(st.sampled_from((-2, 2, 50)))
    share = explain(record)[place][1]
    assert "but the record says" in share


def test_samples_become_a_weight_a_share_and_wei() -> None:
    ((weight, share, paid), _) = explain(make_record([30 << 20, 10 << 20]), samples=30)
    assert weight == f"weight  30 samples << 20 = {30 << 20}"
    assert share == f"share   {30 << 20} * 1048576 / {40 << 20} = 786432 of 1048576 (exact)"
    assert paid == "paid    (1000003 - 0) * 786432 >> 20 = 750002 wei"


def test_stake_and_heads_weigh_where_the_task_says_so() -> None:
    record = make_record([77 << 20])
    stake = explain(record, make_terms(weighting="stake", base_stake=1))
    assert stake[0][0] == f"weight  stake of 77 wei << 20 = {77 << 20}"
    heads = explain(make_record([1 << 20]), make_terms(weighting="uniform"))
    assert heads[0][0] == "weight  1 << 20 = 1048576"


def test_a_late_update_shows_its_discount_for_each_round() -> None:
    terms = make_terms(max_staleness=2, staleness_discount=0.5)
    record = make_record([30 << 18, 30 << 20], origins=[3, 5])
    (late, timely) = explain(record, terms, samples=30)
    half = " * 524288 >> 20"
    assert late[0] == f"weight  30 samples << 20{half}{half} = {30 << 18}, 2 rounds late"
    assert half not in timely[0]


def test_a_capped_share_and_what_it_leaves_to_the_others() -> None:
    (large, small, _) = explain(make_record([6 << 20, 3 << 20, 1 << 20], WEIGHT_TOTAL // 2))
    assert (
        large[1] == f"share   {6 << 20} * 1048576 / {10 << 20} is above the cap: 524288 of 1048576"
    )
    assert f"{3 << 20} * 524288 / {4 << 20} = 393216" in small[1]
    assert "of what those above the cap leave" in small[1]


def test_who_is_left_out_is_told_why_and_gets_nothing() -> None:
    flags = [0, Flag.EXCLUDED | Flag.ZERO_SHARE, Flag.DUPLICATE | Flag.ZERO_SHARE]
    record = make_record([2 << 20, 2 << 20, 2 << 20], flags=flags, shares=[WEIGHT_TOTAL, 0, 0])
    kept, far, copy = explain(record)
    assert kept[1] == f"share   {2 << 20} * 1048576 / {2 << 20} = 1048576 of 1048576 (exact)"
    assert (far[1], far[2]) == (
        "share   0: too far from the others (Multi-Krum)",
        "paid    (1000003 - 0) * 0 >> 20 = 0 wei",
    )
    assert copy[1] == "share   0: the same update as another's; only one of them counts"


def test_a_weight_of_nothing_has_a_share_of_nothing() -> None:
    assert explain(make_record([0, 5]))[0][1] == "share   0 * 1048576 / 5 = 0 of 1048576 (exact)"
    record = make_record([1, 1, 1 << 20]) | {"raw_weights": [0, 0, 1 << 20]}
    record |= {"flags": [0, 0, Flag.EXCLUDED], "shares": [524_288, 524_288, 0]}
    assert "all weights are zero, so all count alike" in explain(record)[0][1]


def test_a_clipped_update_counts_less_in_the_model_and_is_paid_by_its_share() -> None:
    terms = make_terms(rule="clipped", clip_norm=0.5)
    record = make_record([1 << 20, 1 << 20], flags=[Flag.CLIPPED, 0])
    clipped, whole = explain(record, terms, norm2=2**50)
    assert clipped[2].startswith(
        f"effect  isqrt(524288**2 * {2**23}**2 / {2**50}) = 131072 of 1048576 in the model"
    )
    assert clipped[3] == "paid    (1000003 - 0) * 524288 >> 20 = 500001 wei"
    assert len(whole) == 3
    assert "neither" in explain(record, terms, norm2=2**40)[0][2]
    assert "neither" in explain(record, make_terms(), norm2=2**50)[0][2]


def test_a_platform_is_paid_before_everybody_and_nothing_is_lost() -> None:
    terms = make_terms(platform=SOMEBODY, platform_share=0.05)
    record = make_record([1, 1, 1])
    payment = compute_payment(record, terms)
    assert payment.platform == 1_000_003 * 52_428 >> 20
    assert payment.pool == payment.platform + payment.paid + payment.dust
    assert 0 <= payment.dust < 3
    assert f"(1000003 - {payment.platform})" in explain(record, terms)[0][2]


def test_a_failed_round_pays_who_revealed_as_if_all_had() -> None:
    done = SubmissionInfo(b"\1", 5, NAMES[0], 30, 0)
    shares = [30 * WEIGHT_TOTAL // 70]
    (one,) = weigh_compensated(shares, 1000, [5], [30 << 20, 40 << 20], make_terms())
    payment = compute_payment(make_record([1]), make_terms())
    told = describe_compensated(one, payment, make_terms(), 5, done)
    assert one.paid == 1000 * one.share >> 20 == 428
    assert told[0] == f"weight  30 samples << 20 = {30 << 20}"
    assert f"{30 << 20} * 1048576 / {70 << 20} = 449389 of 1048576, rounded down;" in told[1]
    (forged,) = weigh_compensated([WEIGHT_TOTAL], 1000, [5], [30 << 20, 40 << 20], make_terms())
    assert "but the record says" in describe_compensated(forged, payment, make_terms(), 5, done)[1]


@pytest.mark.parametrize(
    "changes",
    [{"origins": [5]}, {"flags": [0, 0, 0]}, {"shares": []}, {"origins": [5, 2**255]},
     {"origins": [5, 6]}, {"clients": []}],
)  # fmt: skip
def test_a_record_that_no_contract_makes_is_refused(changes: dict) -> None:
    check_record(make_record([1, 2]), 5)
    with pytest.raises(NodeRefused) as caught:
        check_record(make_record([1, 2]) | changes, 5)
    assert caught.value.code == "rpc_answer"
    with pytest.raises(NodeRefused):
        check_record(make_record([1, 2]), 5_000_000)


@pytest.mark.parametrize(
    ("max_share", "cap"), [(0.25, 2**18), (1e-6, WEIGHT_TOTAL // 5), (1.0, WEIGHT_TOTAL)]
)
def test_a_failed_round_pays_nobody_above_the_cap(max_share: float, cap: int) -> None:
    """A cap below an equal part is lifted to that."""
    terms = make_terms(max_weight_share=max_share)
    share = min(cap, 90 * WEIGHT_TOTAL // 94)
    (one,) = weigh_compensated([share], 1000, [5], [90 << 20, *[1 << 20] * 4], terms)
    payment = compute_payment(make_record([1]), terms)
    told = describe_compensated(one, payment, terms, 5, SubmissionInfo(b"\1", 5, NAMES[0], 90, 0))
    assert "but the record says" not in told[1]
    assert (f"above the cap: {cap};" in told[1]) is (max_share < 1)
