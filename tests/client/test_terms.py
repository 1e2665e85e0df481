"""A task's description: what the chain would refuse is refused before it costs anything."""

import dataclasses
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from steelyard.client import terms
from steelyard.client.drafting import build_rule, draft_task
from steelyard.client.errors import InvalidTask
from steelyard.client.keys import format_address
from steelyard.client.records import CLOSE_TIMEOUT_SECONDS, MAX_REPUTATION, Parameters
from steelyard.client.terms import (
    FRACTIONS,
    RANGES,
    RULES,
    TERMS,
    Task,
    check_task_terms,
    compute_units,
)

from .conftest import CHAIN, make_task

CONTRACT = (Path(__file__).parents[2] / "contracts" / "terms.vy").read_text("utf-8")
SOMEBODY = "0x" + "11" * 20
KRUM = {"rule": "multi_krum", "min_clients": 5, "max_clients": 9}
TRIMMED = {"rule": "trimmed", "weighting": "uniform", "min_clients": 3, "max_clients": 9}


def draft(**changes):
    return draft_task(make_task(**changes), **CHAIN)


REFUSED = [
    ({"name": ""}, "task_name"),
    ({"name": "x" * 65}, "task_name"),
    ({"mode": "masked"}, "task_mode"),
    ({"rule": "krum"}, "task_rule"),
    ({"rule": "clipped"}, "task_clip_norm"),
    ({"clip_norm": 1.0}, "task_clip_norm"),
    ({"rule": "clipped", "clip_norm": 0.0}, "task_clip_norm"),
    ({"rule": "clipped", "clip_norm": 1e-9}, "task_clip_norm"),
    ({"byzantine": 1}, "task_byzantine"),
    ({**KRUM}, "task_byzantine"),
    ({**KRUM, "byzantine": 0}, "task_byzantine"),
    ({**KRUM, "byzantine": 2}, "task_byzantine"),
    ({**TRIMMED}, "task_byzantine"),
    ({**TRIMMED, "byzantine": 2}, "task_byzantine"),
    ({**TRIMMED, "byzantine": 1, "weighting": "samples"}, "task_weighting"),
    ({"weighting": "wealth"}, "task_weighting"),
    ({"weighting": "stake"}, "task_base_stake"),
    ({"max_weight_share": 0.0}, "task_max_weight_share"),
    ({"max_weight_share": 1.5}, "task_max_weight_share"),
    ({"server_lr": 0.0}, "task_server_lr"),
    ({"server_lr": 8.1}, "task_server_lr"),
    ({"server_lr": "fast"}, "task_server_lr"),
    ({"momentum": -0.1}, "task_momentum"),
    ({"momentum": 1.0}, "task_momentum"),
    ({"momentum": True}, "task_momentum"),
    ({"max_saturated": -1}, "task_max_saturated"),
    ({"bits": 4}, "task_bits"),
    ({"rounds": 0}, "task_rounds"),
    ({"rounds": 10_001}, "task_rounds"),
    ({"rounds": "8"}, "task_rounds"),
    ({"rounds": None}, "task_rounds"),
    ({"min_clients": 0}, "task_min_clients"),
    ({"min_clients": 2}, "task_min_clients"),
    ({"max_clients": 129}, "task_max_clients"),
    ({"fraction_fit": 0.0}, "task_fraction_fit"),
    ({"fraction_fit": 1.01}, "task_fraction_fit"),
    ({"fraction_fit": float("nan")}, "task_fraction_fit"),
    ({"spare_clients": -1}, "task_spare_clients"),
    ({"spare_clients": 129}, "task_spare_clients"),
    ({"max_staleness": 9}, "task_max_staleness"),
    ({"staleness_discount": 1.1}, "task_staleness_discount"),
    (
        {**TRIMMED, "byzantine": 1, "max_staleness": 1, "staleness_discount": 0.0},
        "task_staleness_discount",
    ),
    (
        {**TRIMMED, "byzantine": 1, "max_staleness": 1, "staleness_discount": 2.0**-21},
        "task_staleness_discount",
    ),
    ({"on_failed_quorum": "retry"}, "task_on_failed_quorum"),
    ({"max_extensions": 2}, "task_max_extensions"),
    ({"on_failed_quorum": "extend", "max_extensions": 0}, "task_max_extensions"),
    ({"on_failed_quorum": "extend", "max_extensions": 17}, "task_max_extensions"),
    ({"evaluate_every": -1}, "task_evaluate_every"),
    ({"evaluate_every": 2, "metrics": ()}, "task_evaluate_every"),
    ({"round_seconds": 1}, "task_round_seconds"),
    ({"join_seconds": 0}, "task_join_seconds"),
    ({"commit_seconds": 0}, "task_commit_seconds"),
    ({"reveal_seconds": 30 * 86_400 + 1}, "task_reveal_seconds"),
    ({"admission": "friends"}, "task_admission"),
    ({"admission": "open", "allow": [SOMEBODY]}, "task_admission"),
    ({"min_reputation": 1.1}, "task_min_reputation"),
    ({"min_reputation": (2**20 - 14) / 2**20}, "task_min_reputation"),
    ({"admission_norm": 0.0}, "task_admission_norm"),
    ({"admission_norm": float("inf")}, "task_admission_norm"),
    ({"admission_norm": float("nan")}, "task_admission_norm"),
    ({"admission_norm": 1e-9}, "task_admission_norm"),
    ({"reward": -1}, "task_reward"),
    ({"reward": 2**100 + 1}, "task_reward"),
    ({"base_stake": -1}, "task_base_stake"),
    ({"stake_per_sample": -1}, "task_stake_per_sample"),
    ({"bond": -1}, "task_bond"),
    ({"bond": 5, "base_stake": 4}, "task_bond"),
    ({"close_reserve": -1}, "task_close_reserve"),
    ({"close_reserve": 1}, "task_close_reserve"),
    ({"close_bounty": -1}, "task_close_bounty"),
    ({"platform": SOMEBODY}, "task_platform"),
    ({"platform_share": 0.1}, "task_platform"),
    ({"platform": "0x12", "platform_share": 0.1}, "task_platform"),
    ({"platform": "0x" + "00" * 20, "platform_share": 0.1}, "task_platform"),
    ({"platform": SOMEBODY, "platform_share": 0.21}, "task_platform_share"),
    ({"platform": SOMEBODY, "platform_share": 2.0**-21}, "task_platform_share"),
    ({"sponsor_samples": 5}, "task_sponsor_samples"),
    ({"sponsor_samples": -1}, "task_sponsor_samples"),
    ({"metrics": ["a,b"]}, "task_metrics"),
    ({"metrics": ["m"] * 9}, "task_metrics"),
    ({"allow": ["0x12"]}, "task_allow"),
    ({"allow": ["nobody"]}, "task_allow"),
    ({"allow": [7]}, "task_allow"),
    ({"allow": [format_address(bytes(range(20))).swapcase()]}, "task_allow"),
    ({"allow": [SOMEBODY] * 129}, "task_allow"),
    ({"config": {"a": [1]}}, "bundle_config"),
]


@pytest.mark.parametrize(("changes", "code"), REFUSED)
def test_what_the_chain_would_refuse_is_refused_before_it_costs(changes, code) -> None:
    with pytest.raises(InvalidTask) as caught:
        draft(**changes)
    assert caught.value.code == code


def test_every_rule_of_the_tables_has_a_refusal_here() -> None:
    """A description that breaks one rule only, for each row."""
    refused = {code.removeprefix("task_") for _, code in REFUSED}
    assert set(RANGES) - refused == set()
    assert set(FRACTIONS) - refused == set()
    for name, is_good, hint in TERMS:
        broken = [changes for changes, _ in REFUSED if not is_good_for(is_good, changes)]
        assert broken, f"no refusal for {name}: {hint}"


def is_good_for(is_good, changes: dict[str, object]) -> bool:
    try:
        return is_good(make_task(**changes))
    except TypeError:
        return True


def test_every_parameter_of_the_contract_follows_from_the_description() -> None:
    struct = re.search(r"struct Parameters:\n((?:    \w+: .*\n)+)", CONTRACT)
    assert struct is not None
    assert re.findall(r"    (\w+):", struct[1]) == list(Parameters.__slots__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_ROUNDS", RANGES["rounds"][1]),
        ("MAX_STALENESS", terms.MAX_STALENESS),
        ("MAX_EXTENSIONS", terms.MAX_EXTENSIONS),
        ("MAX_SERVER_LR", terms.params.MAX_SERVER_RATE),
        ("MAX_MOMENTUM", terms.params.MAX_MOMENTUM),
        ("MAX_WEI", terms.MAX_WEI),
        ("MAX_PERIOD_SECONDS", terms.MAX_PERIOD_SECONDS),
    ],
)
def test_limits_are_the_contracts(name: str, value: int) -> None:
    found = re.search(rf"^{name}: constant\(uint256\) = ([\d_* +-]+)$", CONTRACT, re.M)
    assert found is not None
    assert eval(found[1]) == value


def test_the_best_reputation_and_the_time_for_a_close_are_the_contracts() -> None:
    seam = (Path(__file__).parents[2] / "contracts" / "seam.vy").read_text("utf-8")
    assert "MAX_REPUTATION: constant(uint256) = seam.ONE - 15\n" in CONTRACT
    assert "CLOSE_TIMEOUT_SECONDS: constant(uint256) = 86_400\n" in seam
    assert (MAX_REPUTATION, CLOSE_TIMEOUT_SECONDS) == (2**20 - 15, 86_400)
    assert draft(min_reputation=(2**20 - 15) / 2**20).parameters.min_reputation == 2**20 - 15


def test_late_updates_may_count_for_nothing_where_nothing_is_what_they_are_paid() -> None:
    assert draft(max_staleness=1, staleness_discount=0.0).parameters.staleness_discount == 0
    once = draft(**TRIMMED, byzantine=1, max_staleness=1, staleness_discount=2.0**-20)
    assert once.parameters.staleness_discount == 1
    assert draft(**TRIMMED, byzantine=1, staleness_discount=0.0).parameters.max_staleness == 0


DAYS = 86_400
TWINS = {
    "tasks: no name": ({"name": ""}, "task_name"),
    "tasks: open to everybody": ({"admission": "open", "allow": [SOMEBODY]}, "task_admission"),
    "tasks: rounds out of range": ({"rounds": 0}, "task_rounds"),
    "tasks: clients out of range": ({"max_clients": 129}, "task_max_clients"),
    "tasks: drawing out of range": ({"fraction_fit": 0.0}, "task_fraction_fit"),
    "tasks: staleness out of range": ({"max_staleness": 9}, "task_max_staleness"),
    "tasks: unknown quorum policy": ({"on_failed_quorum": "retry"}, "task_on_failed_quorum"),
    "tasks: extensions do not fit the policy": ({"max_extensions": 1}, "task_max_extensions"),
    "tasks: evaluations out of range": ({"evaluate_every": 10_001}, "task_evaluate_every"),
    "tasks: period out of range": ({"reveal_seconds": 0}, "task_reveal_seconds"),
    "tasks: unknown admission": ({"admission": "friends"}, "task_admission"),
    "tasks: reputation out of range": ({"min_reputation": 1.0}, "task_min_reputation"),
    "tasks: no admission norm": ({"admission_norm": 0.0}, "task_admission_norm"),
    "tasks: unknown weighting": ({"weighting": "wealth"}, "task_weighting"),
    "tasks: weighting by stake needs a base stake": ({"weighting": "stake"}, "task_base_stake"),
    "tasks: bits must be 8 or 16": ({"bits": 4}, "task_bits"),
    "tasks: unknown rule": ({"rule": "krum"}, "task_rule"),
    "tasks: bound does not fit the rule": ({"clip_norm": 1.0}, "task_clip_norm"),
    "tasks: the trimmed mean needs uniform weighting": (
        {**TRIMMED, "byzantine": 1, "weighting": "samples"},
        "task_weighting",
    ),
    "tasks: too few clients for the rule": ({**KRUM, "byzantine": 2}, "task_byzantine"),
    "tasks: late updates would count unpaid": (
        {**TRIMMED, "byzantine": 1, "max_staleness": 1, "staleness_discount": 0.0},
        "task_staleness_discount",
    ),
    "tasks: share cap out of range": ({"max_weight_share": 0.0}, "task_max_weight_share"),
    "tasks: server step out of range": ({"server_lr": 0.0}, "task_server_lr"),
    "tasks: amount out of range": ({"reward": 2**100 + 1}, "task_reward"),
    "tasks: bond above the base stake": ({"bond": 1}, "task_bond"),
    "tasks: bounty above the reserve": ({"close_reserve": 1}, "task_close_reserve"),
    "tasks: platform share out of range": (
        {"platform": SOMEBODY, "platform_share": 2.0**-21},
        "task_platform_share",
    ),
    "rounds: a round would not fit in a block": ({"max_clients": 128}, "task_capacity"),
    "rounds: model expires too soon": ({"join_seconds": 30 * DAYS}, "task_retention"),
}
"""Each reason for which `publish` can revert, and a description that is refused for it here."""
RECKONED = {"tasks: escrow differs from reward and reserves"}
"""What no description can bring about."""


def list_reasons() -> set[str]:
    """What `publish` and all that it calls can answer."""
    folder = Path(__file__).parents[2] / "contracts"
    tasks = (folder / "Tasks.vy").read_text("utf-8")
    publish = tasks[tasks.index("def publish(") : tasks.index("def fund(")]
    sources = [CONTRACT, publish, (folder / "capacity.vy").read_text("utf-8")]
    return set(re.findall(r'"((?:tasks|rounds): [^"]+)"', "\n".join(sources)))


def test_each_reason_for_which_publishing_reverts_is_known_here() -> None:
    assert list_reasons() == set(TWINS) | RECKONED
    plain = draft(reward=1_000, rounds=3, close_reserve=10**6, close_bounty=0)
    assert plain.escrow == 1_000 + 3 * 10**6


@pytest.mark.parametrize("reason", TWINS)
def test_nobody_meets_a_reason_to_revert_after_the_check(reason: str) -> None:
    changes, code = TWINS[reason]
    blocks = {"gas_limit": 8_000_000} if code == "task_capacity" else {}
    with pytest.raises(InvalidTask) as caught:
        draft_task(make_task(**changes), **CHAIN | blocks)
    assert caught.value.code == code


def test_a_description_in_the_users_units_becomes_the_chains() -> None:
    parameters = draft(
        **KRUM,
        byzantine=1,
        max_weight_share=0.25,
        server_lr=0.5,
        momentum=0.9,
        fraction_fit=0.3,
        spare_clients=2,
        max_staleness=3,
        staleness_discount=0.5,
        on_failed_quorum="extend",
        evaluate_every=4,
        base_stake=9,
        bond=8,
        admission="applicants",
        min_reputation=0.125,
        platform=SOMEBODY,
        platform_share=0.05,
    ).parameters
    assert parameters.rule.encode() == (3, 1, 2**18, 2048, 3686)
    assert parameters.fraction_fit == 314_572
    assert (parameters.spare_clients, parameters.max_staleness) == (2, 3)
    assert parameters.staleness_discount == 2**19
    assert (parameters.on_failed_quorum, parameters.max_extensions) == (1, 2)
    assert parameters.evaluate_every == 4
    assert (parameters.bond, parameters.admission, parameters.min_reputation) == (8, 2, 2**17)
    assert (parameters.platform, parameters.platform_share) == (b"\x11" * 20, 52_428)


def test_the_defaults_are_plain_averaging_of_everybody() -> None:
    parameters = draft().parameters
    assert parameters.rule.encode() == (0, 0, 2**20, 4096, 0)
    assert (parameters.fraction_fit, parameters.spare_clients) == (2**20, 0)
    assert (parameters.max_staleness, parameters.on_failed_quorum) == (0, 0)
    assert parameters.max_saturated == 2**256 - 1
    assert parameters.evaluate_every == 1
    assert parameters.admission == 0
    assert draft(metrics=()).parameters.evaluate_every == 0
    assert draft(allow=[SOMEBODY]).parameters.admission == 1


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7, 1 / 3, 1.0])
def test_a_fraction_never_draws_more_than_was_said(fraction: float) -> None:
    for active in range(1, 129):
        drawn = -(-active * compute_units(fraction) // 2**20)
        assert drawn <= -(-active * Fraction(fraction).limit_denominator(1000) // 1)


def test_every_rule_of_the_chain_can_be_described() -> None:
    assert {int(kind) for kind in RULES.values()} == set(range(4))
    for name in RULES:
        changes = {"rule": name, "min_clients": 5, "max_clients": 5, "weighting": "uniform"}
        changes |= {"clip_norm": 1.0} if name == "clipped" else {}
        changes |= {"byzantine": 1} if name in ("trimmed", "multi_krum") else {}
        assert build_rule(make_task(**changes)).kind is RULES[name]
        draft(**changes)


@pytest.mark.slow
def test_momentum_that_no_blob_could_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"w": np.zeros(7_000_000, np.float32)}
    draft(model=model)
    with pytest.raises(InvalidTask) as caught:
        draft(model=model, momentum=0.9)
    assert caught.value.code == "task_momentum"


def test_the_worst_cost_is_escrow_fee_and_what_sponsors_send() -> None:
    plain = draft(reward=1000)
    assert plain.worst_cost == plain.escrow + plain.most_fee
    assert plain.fee < plain.most_fee
    people = ["0x" + f"{n:02x}" * 20 for n in (1, 2, 3)]
    sponsored = draft(
        reward=1000, allow=people, base_stake=100, stake_per_sample=2, sponsor_samples=50
    )
    assert sponsored.sponsorship == 200
    assert sponsored.sponsored_gas > 0
    each = sponsored.sponsorship + sponsored.sponsored_gas
    assert sponsored.worst_cost == sponsored.escrow + sponsored.most_fee + 3 * each


def test_terms_that_a_publisher_may_regret_are_told() -> None:
    careful = {
        **{"min_clients": 2, "max_clients": 4, "reward": 100, "rounds": 1},
        **{"base_stake": 50, "bond": 50, "stake_per_sample": 1},
    }
    assert draft(**careful).warnings == ()
    for change, word in [
        ({"max_clients": 2}, "no spare one"),
        ({"bond": 49}, "raise bond"),
        ({"stake_per_sample": 0}, "cost nothing"),
        ({"min_reputation": 0.2}, "newcomers"),
        ({"max_staleness": 1}, "late update"),
        ({"weighting": "uniform"}, "heads count"),
    ]:
        (told,) = draft(**careful | change).warnings
        assert word in told
    assert draft(**careful, weighting="uniform", admission="invited").warnings == ()


def test_a_task_is_described_by_its_fields_only() -> None:
    assert set(RANGES) | set(FRACTIONS) <= set(Task.__dataclass_fields__)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Task)])
def test_what_describes_a_task_tells_what_each_field_means(field: str) -> None:
    assert f"`{field}`" in (Task.__doc__ or "")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (10**38, "reward is 100000000000000000000 coins; give 0 to 1267650600228.2294"),
        (-(10**17), "reward is -0.1 coins; give 0 to 126"),
        (1.5, 'reward is 1.5; give whole wei, as coins("1.5") does'),
        (True, 'reward is True; give whole wei, as coins("1.5") does'),
    ],
)
def test_an_amount_out_of_range_is_told_in_coins(value: object, said: str) -> None:
    with pytest.raises(InvalidTask, match=re.escape(said)):
        check_task_terms(make_task(reward=value))


def test_a_reserve_below_its_bounty_is_told_in_coins() -> None:
    with pytest.raises(InvalidTask, match=r"close_reserve of 1 coins is below the bounty of 2\.5;"):
        draft_task(make_task(close_reserve=10**18, close_bounty=25 * 10**17), **CHAIN)
