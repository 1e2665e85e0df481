"""The simulator is worth what it can kill: each broken rule dies, and only broken rules do."""

from pathlib import Path

import pytest

from .__main__ import main
from .campaign import SEED_BUDGET, hunt, run_campaign
from .mutants import MUTANTS, Mutant

RULES = set(range(1, 14))
"""facts/consensus.md. Rule 12 with re-proposals in the place of fillers (decision 0008)."""

KILLS = {
    "any_leader": (0, "not_the_leader"),
    "any_height": (79, "broken_chain"),
    "no_backoff": (1, "stuck"),
    "old_parent": (1, "stuck"),
    "notarize_twice": (0, "double_vote"),
    "notarize_late": (0, "late_vote"),
    "no_ancestry": (18, "unjustified"),
    "no_gap_check": (9, "unjustified"),
    "no_ancestors": (52, "no_ancestor"),
    "unvalidated": (0, "unavailable"),
    "unsynced_block": (0, "unavailable"),
    "finalize_after_nullify": (1, "double_vote"),
    "finalize_another": (1, "double_vote"),
    "never_finalize": (0, "stuck"),
    "nullify_after_finalize": (3, "double_vote"),
    "never_nullify": (0, "stuck"),
    "one_certificate": (26, "stuck"),
    "stay_after_nullification": (0, "stuck"),
    "final_when_notarized": (0, "false_certificate"),
    "final_alone": (1, "broken_chain"),
    "silent_when_stuck": (1, "stuck"),
    "no_fetch": (7, "stuck"),
    "first_holder_only": (62, "stuck"),
    "forgets_votes": (3, "double_vote"),
    "unsynced_vote": (3, "double_vote"),
    "no_reports": (33, "unreported"),
    "false_reports": (0, "false_report"),
    "any_epoch": (3, "stuck"),
    "block_past_boundary": (3, "past_boundary"),
    "repropose_uncertified": (85, "unjustified"),
    "repropose_without_gap_check": (302, "unjustified"),
    "no_reproposal": (2, "stuck"),
    "next_epoch_when_notarized": (2, "early_epoch"),
    "old_set": (1, "not_the_leader"),
    "no_catching_up": (3, "stuck"),
    "unchecked_certificate": (9, "conflicting_certificates"),
    "unsigned_certificate": (9, "past_boundary"),
    "small_certificate": (9, "unjustified"),
    "unchecked_segment": (35, "not_the_leader"),
    "half_quorum": (0, "unjustified"),
}
"""The first seed that kills each mutant, and how; `python -m tests.bench consensus` finds them."""


LONG_RUNS = {
    "no_backoff",
    "never_finalize",
    "never_nullify",
    "stay_after_nullification",
    "no_fetch",
    "first_holder_only",
}
"""Half a second or more each, until nobody doubts that nothing moves any more."""


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(m, id=m.name, marks=[pytest.mark.slow] if m.name in LONG_RUNS else [])
        for m in MUTANTS
    ],
)
def test_a_broken_rule_is_found(mutant: Mutant) -> None:
    seed, violation = KILLS[mutant.name]
    assert seed < SEED_BUDGET
    killed = hunt(mutant, [seed])
    assert killed is not None
    assert killed.violation == violation


def test_every_rule_has_a_mutant_and_every_mutant_a_seed() -> None:
    assert {mutant.rule for mutant in MUTANTS} == RULES
    assert [mutant.name for mutant in MUTANTS] == list(KILLS)


@pytest.mark.slow
def test_the_core_is_clean_over_the_seeds_that_kill() -> None:
    campaign = run_campaign(sorted({seed for seed, _ in KILLS.values()}))
    assert (campaign.broken, campaign.capped) == ((), ())


def test_the_page_lists_every_mutant_with_the_seed_that_kills_it() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "simulation.md").read_text("utf-8")
    for mutant in MUTANTS:
        seed, violation = KILLS[mutant.name]
        row = f"| {mutant.rule} | `{mutant.name}` | {mutant.breaks} | {seed} | `{violation}` |"
        assert row in page


def test_a_seed_can_be_replayed_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["9"]) == 0
    assert main(["9", "unchecked_certificate", "--events"]) == 1
    assert "conflicting_certificates" in capsys.readouterr().out
    assert main(["9", "no_such_mutant"]) == 2
