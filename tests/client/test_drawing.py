"""Drawn or not, in time or late, with a bond lost, in a task that pauses: one client's view."""

from pathlib import Path

import httpx
import pytest

from steelyard.chain.transactions import decode_transaction
from steelyard.client.amounts import coins
from steelyard.client.contracts import get_contract
from steelyard.client.errors import ClientError, Reverted
from steelyard.client.participant import MAX_STATEMENT_BYTES, Client
from steelyard.client.records import TaskState
from steelyard.client.training import Result

from .agreement import TasksRefusal
from .conftest import HOSPITAL, open_account, train
from .conftest import make_task as make_long_task
from .ledger import Ledger

OTHER = b"\x77" * 20


@pytest.fixture
def lines(hospital) -> list[str]:
    told: list[str] = []
    hospital.report = told.append
    return told


def make_task(**changes):
    """Rounds of twenty seconds: fifteen to commit, five to reveal."""
    return make_long_task(**{"round_seconds": 20, "join_seconds": 5} | changes)


def find_calls(ledger: Ledger, name: str) -> list[dict[str, object]]:
    """The arguments of every call of that name that was included."""
    calls = [get_contract("Rounds").decode_call(t.data) for t in ledger.included]
    return [call[1] for call in calls if call is not None and call[0] == name]


def draw_only(ledger: Ledger, rounds: set[int]) -> None:
    """Draw the only seat in these rounds, and nobody in the others."""
    ledger.agreement.choose = lambda task, number, seats: seats if number in rounds else []


def be_slow_in(ledger: Ledger, hospital: Client, rounds: set[int], seconds: int = 16) -> None:
    @hospital.train
    def slow(model, ctx):
        if ctx.round in rounds:
            for _ in range(seconds):
                ledger.sleep(1)
        return train(model, ctx)


# -- drawn or not ----------------------------------------------------------------------------------
def test_who_is_not_drawn_waits_and_spends_nothing(ledger, organisation, hospital, lines) -> None:
    draw_only(ledger, {2})
    task = organisation.publish(make_task(rounds=3)).number
    summary = hospital.run(task, samples=50)
    assert (summary.state, summary.submitted) == (TaskState.FINISHED, 1)
    assert [call["round"] for call in find_calls(ledger, "commit")] == [2]
    assert "round 1: not drawn this round, waiting; that costs nothing" in lines
    sent = [t for t in ledger.included if t.sender == hospital.address]
    assert len(sent) == 4, "join, commit, reveal, claim"


# -- late updates ----------------------------------------------------------------------------------
def test_an_update_that_came_too_late_goes_into_a_later_round(
    ledger, organisation, hospital, lines
) -> None:
    draw_only(ledger, {1})
    be_slow_in(ledger, hospital, {1})
    task = organisation.publish(make_task(rounds=3, max_staleness=2)).number
    hospital.run(task, samples=50)
    late = [call for call in find_calls(ledger, "commit") if call["origin"] != call["round"]]
    assert [(call["round"], call["origin"]) for call in late] == [(2, 1)]
    assert [call["origin"] for call in find_calls(ledger, "reveal")] == [1], "shown once"
    assert any("1 round late" in line for line in lines)


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_update_is_never_later_than_the_task_takes(
    ledger, organisation, hospital, staleness: int
) -> None:
    """It was trained in round 1 and is ready when the task is in round 3."""
    be_slow_in(ledger, hospital, {1}, seconds=42)
    draw_only(ledger, {1})
    task = organisation.publish(make_task(rounds=4, max_staleness=staleness)).number
    hospital.run(task, samples=50)
    assert find_calls(ledger, "reveal") == []


def test_a_slow_client_sends_what_it_has_instead_of_missing_again(
    ledger, organisation, hospital
) -> None:
    be_slow_in(ledger, hospital, set(range(1, 9)), seconds=17)
    task = organisation.publish(make_task(rounds=6, max_staleness=1)).number
    summary = hospital.run(task, samples=50)
    assert summary.submitted >= 2
    assert {call["round"] - call["origin"] for call in find_calls(ledger, "reveal")} == {1}


def test_a_kill_between_a_late_commit_and_its_reveal_changes_no_byte(
    ledger, organisation, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    draw_only(ledger, {1})
    task = organisation.publish(make_task(rounds=3, max_staleness=2)).number
    lives = {"left": 1}

    def answer(request: httpx.Request) -> httpx.Response:
        is_late = any(call["origin"] < call["round"] for call in find_calls(ledger, "commit"))
        if lives["left"] and is_late:
            lives["left"] -= 1
            raise Killed
        return ledger.answer(request)

    def live() -> None:
        with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
            be_slow_in(ledger, client, {1})
            client.run(task, samples=50)

    with pytest.raises(Killed):
        live()
    live()
    assert lives["left"] == 0
    assert len(find_calls(ledger, "reveal")) == 1
    sent = [decode_transaction(raw) for raw in ledger.seen]
    mine = [t.nonce for t in sent if t.sender == bytes.fromhex(HOSPITAL.address[2:])]
    assert len(mine) == len(set(mine)), "two transactions with one nonce"


@pytest.mark.slow
def test_who_joined_later_has_no_late_update_of_rounds_before(
    ledger, organisation, hospital
) -> None:
    """The journal has round 1's update; the seat was given up and taken again."""
    be_slow_in(ledger, hospital, {1})
    task = organisation.publish(make_task(rounds=4, max_staleness=3, max_clients=2)).number
    draw_only(ledger, {1})
    rejoined = []

    @hospital.evaluate
    def evaluate(model, ctx):
        raise AssertionError("no model was made")

    real = ledger.agreement._open

    def leave_and_join(number, state):
        if state.round == 1 and not rejoined:
            member = state.members[hospital.address]
            member.active_from = 2
            rejoined.append(True)
        real(number, state)

    ledger.agreement._open = leave_and_join
    hospital.run(task, samples=50)
    assert rejoined
    assert find_calls(ledger, "reveal") == []


# -- bonds -----------------------------------------------------------------------------------------
def lose_bond(ledger: Ledger) -> None:
    """Nothing that is revealed in round 1 gets into a block in time."""
    real = ledger.agreement.do_reveal

    def refuse(sender, value, **arguments):
        if arguments["round"] == 1:
            raise TasksRefusal("rounds: reveal period is over")
        real(sender, value, **arguments)

    ledger.agreement.do_reveal = refuse


@pytest.mark.parametrize(("per_sample", "submitted", "covers"), [("0.1", 2, 30), ("0", 0, 0)])
def test_a_lost_bond_is_told_with_the_command_and_nothing_is_spent(
    ledger, organisation, hospital, lines, per_sample: str, submitted: int, covers: int
) -> None:
    """What is left may cover enough rows to go on with, or less than the least stake."""
    terms = {"base_stake": coins(5), "bond": coins(2), "stake_per_sample": coins(per_sample)}
    task = organisation.publish(make_task(rounds=3, **terms)).number
    lose_bond(ledger)
    assert hospital.run(task, samples=50).submitted == submitted
    left = coins(3) + 50 * coins(per_sample)
    assert ledger.tasks[task].members[hospital.address].stake == left
    assert any(f"covers {covers} of 50 rows" in line for line in lines)
    assert any(f"`steelyard client stake {task} 2` adds what is missing" in line for line in lines)
    sent = [t.value for t in ledger.included if t.sender == hospital.address]
    assert sum(sent) == left + coins(2)


def test_added_stake_brings_a_client_back(ledger, organisation, hospital) -> None:
    terms = {"base_stake": coins(5), "bond": coins(2), "stake_per_sample": coins("0.1")}
    task = organisation.publish(make_task(rounds=4, **terms)).number
    lose_bond(ledger)
    real = ledger.agreement._open

    def open_with_stake(number, state):
        if state.round == 2:
            state.members[hospital.address].stake += coins(2)
        real(number, state)

    ledger.agreement._open = open_with_stake
    assert hospital.run(task, samples=50).submitted == 3
    assert hospital.add_stake(task) == 0


def test_what_is_missing_of_a_stake_is_added_once(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task(base_stake=50, max_clients=3)).number
    with pytest.raises(ClientError) as caught:
        hospital.add_stake(task)
    assert caught.value.code == "not_joined"
    hospital.join(task, 5)
    ledger.tasks[task].members[hospital.address].stake -= 20
    assert hospital.add_stake(task) == 20
    assert hospital.add_stake(task) == 0
    assert hospital.add_stake(task, 7) == 7
    assert ledger.tasks[task].members[hospital.address].stake == 57


def test_rows_that_a_smaller_stake_still_covers_are_sent(ledger, organisation, hospital) -> None:
    """Trained on 30 rows; of 50 promised ones the stake covers 40."""
    terms = {"stake_per_sample": 10, "max_clients": 2}
    published = organisation.publish(make_task(**terms))
    hospital.join(published.number, 50)
    ledger.tasks[published.number].members[hospital.address].stake -= 100
    published.start()
    assert hospital.run(published.number).submitted == 2


# -- joining ---------------------------------------------------------------------------------------
def test_a_sponsored_client_stakes_only_what_is_missing(ledger, organisation, hospital) -> None:
    published = organisation.publish(make_task(base_stake=100, max_clients=2))
    before = ledger.get_balance(hospital.address)
    published.sponsor(hospital.address, stake=70, gas=30)
    assert ledger.get_balance(hospital.address) == before + 30
    hospital.join(published.number, 5)
    member = ledger.tasks[published.number].members[hospital.address]
    assert (member.stake, member.sponsored) == (100, 70)
    assert hospital.leave(published.number) == 30
    assert published.claim() == 70


def test_an_applicant_is_read_invited_and_joins(ledger, organisation, hospital) -> None:
    published = organisation.publish(make_task(admission="applicants", max_clients=2))
    with pytest.raises(Reverted, match="not invited"):
        hospital.join(published.number, 5)
    hospital.apply(published.number, "St. Mary's, 300 patients")
    (found,) = published.get_applicants()
    assert (found.address, found.text) == (hospital.address, "St. Mary's, 300 patients")
    assert (found.reputation, found.is_invited, found.is_joined) == (0.125, False, False)
    published.invite(found.address)
    hospital.join(published.number, 5)
    (found,) = published.get_applicants()
    assert (found.is_invited, found.is_joined) == (True, True)


def test_a_statement_may_be_missing_or_gone_and_is_never_too_long(
    ledger, organisation, hospital, tmp_path
) -> None:
    published = organisation.publish(make_task(admission="applicants", max_clients=2))
    with pytest.raises(ClientError) as caught:
        hospital.apply(published.number, "x" * (MAX_STATEMENT_BYTES + 1))
    assert caught.value.code == "statement_size"
    hospital.apply(published.number)
    assert [one.text for one in published.get_applicants()] == [None]
    again = organisation.publish(make_task(admission="applicants", reference="again"))
    hospital.apply(again.number, "hello")
    (found,) = again.get_applicants()
    del ledger.blobs[found.statement]
    assert [one.text for one in again.get_applicants()] == [None]


def test_a_reputation_that_is_too_low_is_told_before_anything_is_sent(
    ledger, organisation, hospital
) -> None:
    task = organisation.publish(make_task(min_reputation=0.2)).number
    sent = len(ledger.seen)
    with pytest.raises(ClientError, match=r"reputation of 0\.125") as caught:
        hospital.join(task, 5)
    assert caught.value.code == "reputation_low"
    assert len(ledger.seen) == sent
    ledger.agreement.reputations[hospital.address] = 2**18
    assert hospital.join(task, 5) is not None
    assert organisation.get_reputation(hospital.address) == 0.25


# -- the organisation's hand -----------------------------------------------------------------------
def test_a_pause_is_waited_for_and_the_model_still_evaluated(
    ledger, organisation, hospital, lines
) -> None:
    published = organisation.publish(make_task(rounds=2))

    @hospital.train
    def pause_in_round_one(model, ctx):
        if ctx.round == 1:
            published.pause()
        return train(model, ctx)

    @hospital.evaluate
    def resume(model, ctx):
        if ctx.round == 1:
            assert published.get_info().state is TaskState.PAUSED
            published.resume()
        return Result(samples=20, metrics={"accuracy": 0.75})

    summary = hospital.run(published.number, samples=50)
    assert (summary.state, summary.submitted) == (TaskState.FINISHED, 2)
    for number in (1, 2):
        assert organisation.rounds.get_metrics(published.number, number).reports == 1


def test_a_cancelled_round_with_a_commitment_is_still_paid(ledger, organisation, hospital) -> None:
    published = organisation.publish(make_task(rounds=2))
    real = ledger.agreement.do_commit

    def commit_and_cancel(sender, value, **arguments):
        real(sender, value, **arguments)
        ledger.tasks[published.number].wish = 2

    ledger.agreement.do_commit = commit_and_cancel
    summary = hospital.run(published.number, samples=50)
    assert (summary.state, summary.claimed) == (TaskState.ABORTED, 500)


def test_a_task_in_its_lobby_is_cancelled_at_once(ledger, organisation, hospital) -> None:
    published = organisation.publish(make_task(max_clients=2))
    hospital.join(published.number, 5)
    published.cancel()
    assert published.get_info().state is TaskState.ABORTED
    assert published.refund() > 0


def test_reports_come_only_where_they_are_asked_for(ledger, organisation, hospital) -> None:
    published = organisation.publish(make_task(rounds=4, evaluate_every=3))

    @hospital.train
    def ask_again(model, ctx):
        if ctx.round == 3:
            published.request_evaluation(1)
        return train(model, ctx)

    @hospital.evaluate
    def evaluate(model, ctx):
        return Result(samples=20, metrics={"accuracy": 0.75})

    hospital.run(published.number, samples=50)
    rounds = organisation.rounds
    reports = [rounds.get_metrics(published.number, number).reports for number in (1, 2, 3, 4)]
    assert reports == [1, 0, 1, 1]


def test_funds_make_later_pools_grow_and_are_sent_once(ledger, organisation, hospital) -> None:
    published = organisation.publish(make_task(rounds=2, reward=1000))
    published.fund(600)
    assert hospital.run(published.number, samples=50).claimed == 1600


def test_an_extended_round_is_committed_to_again(ledger, organisation, hospital) -> None:
    be_slow_in(ledger, hospital, {1})
    task = organisation.publish(
        make_task(rounds=1, on_failed_quorum="extend", max_extensions=1)
    ).number
    assert hospital.run(task, samples=50).submitted == 1
    assert ledger.tasks[task].rounds[1].extensions == 1


def test_a_refund_policy_ends_the_run_with_the_failed_round(ledger, organisation, hospital) -> None:
    be_slow_in(ledger, hospital, {1})
    task = organisation.publish(make_task(rounds=3, on_failed_quorum="refund")).number
    summary = hospital.run(task, samples=50)
    assert (summary.state, summary.rounds) == (TaskState.ABORTED, 1)


def test_everybody_in_allow_is_sponsored_when_the_task_is_published(
    ledger, organisation, hospital
) -> None:
    people = [hospital.address, OTHER]
    task = make_task(
        allow=people, base_stake=40, stake_per_sample=2, sponsor_samples=30, max_clients=2
    )
    before = ledger.get_balance(hospital.address)
    published = organisation.publish(task)
    organisation.publish(task)
    assert ledger.tasks[published.number].sponsorships == dict.fromkeys(people, 100)
    assert ledger.get_balance(hospital.address) > before
    hospital.join(published.number, 30)
    assert ledger.tasks[published.number].members[hospital.address].sponsored == 100
    assert published.unsponsor(OTHER) == 100
    assert published.unsponsor(OTHER) == 0
