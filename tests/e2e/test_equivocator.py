"""A validator that signs two things in one view, as a process among honest ones."""

import pytest

from steelyard.chain.consensus.votes import Offence
from steelyard.node import localnet
from tests.bench.equivocation import watch_equivocation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_who_votes_twice_is_slashed_removed_and_provably_guilty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(localnet, "ANSWER_SECONDS", 60.0)  # of a machine with other things to do
    aftermath = watch_equivocation(Offence.FINALIZED_AND_NULLIFIED)
    assert aftermath.slashed == {aftermath.guilty}
    assert aftermath.guilty not in {member.address for member in aftermath.set_after.members}
    assert len(aftermath.set_after.members) == 3
    assert aftermath.blocks_after > 0
    assert aftermath.is_in_one
    assert (aftermath.true_verdict, aftermath.forged_verdict) == ("YES", "REFUTED")
