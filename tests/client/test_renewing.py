"""What would expire before its round is closed is declared again by the client that needs it."""

from pathlib import Path

import httpx
import pytest

from steelyard.chain import params
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.client import doctor, renewing
from steelyard.client.contracts import get_contract
from steelyard.client.errors import BlobGone
from steelyard.client.participant import Client
from steelyard.client.records import TaskState

from .agreement import DAY_SECONDS
from .conftest import HOSPITAL, make_task, open_account, open_rpc, train
from .ledger import Ledger

VELOCITY = b"what momentum has gathered"


@pytest.fixture
def lines(hospital) -> list[str]:
    told: list[str] = []
    hospital.report = told.append
    return told


def find_sent(ledger: Ledger, name: str) -> list[tuple[Transaction, dict[str, object]]]:
    """The transactions with that call of Rounds or Tasks that were included."""
    found = []
    for transaction in ledger.included:
        for contract in map(get_contract, ("Rounds", "Tasks")):
            call = contract.decode_call(transaction.data)
            if transaction.to == contract.address and call is not None and call[0] == name:
                found.append((transaction, call[1]))
    return found


def list_carried(ledger: Ledger, name: str) -> list[tuple[int, list]]:
    """By call of that name: its round, and the blobs that it declares."""
    return [(call["round"], list(sent.blobs)) for sent, call in find_sent(ledger, name)]


def pause_before_round_two(ledger: Ledger, task: int, days: int, resume) -> None:
    """Hold the task after round 1, let so many days go by, and have `resume` called."""
    agreement = ledger.agreement
    real = agreement._move_on

    def move_on(number, state, current):
        state.wish = 1 if state.round == 1 else state.wish
        real(number, state, current)
        if state.state == TaskState.PAUSED:
            ledger.now += days * DAY_SECONDS
            ledger.timestamp = int(ledger.now)
            resume(number, state)

    agreement._move_on = move_on


def open_round(ledger: Ledger):
    """Resume without declaring anything, as an older client would."""

    def resume(number, state):
        state.state = TaskState.RUNNING
        ledger.agreement._open(number, state)

    return resume


@pytest.mark.parametrize("days", [28, 29])
def test_a_base_that_expires_too_soon_is_declared_again_with_the_commitment(
    ledger, organisation, hospital, lines, days: int
) -> None:
    """Of 30 days: 29 leave less than a round and a day for its close, 28 leave enough."""
    task = organisation.publish(make_task()).number
    pause_before_round_two(ledger, task, days, open_round(ledger))
    summary = hospital.run(task, samples=50)
    assert (summary.submitted, summary.claimed) == (2, 1000)
    base = ledger.tasks[task].model
    renewed = [base] if days == 29 else []
    assert list_carried(ledger, "commit") == [(1, []), (2, renewed)]
    assert [len(blobs) for _, blobs in list_carried(ledger, "reveal")] == [1, 1]
    assert any("declaring again" in line for line in lines) == (days == 29)
    assert hospital.journal.get_blob(base) is None, "nothing of it stays in the journal"


def test_nothing_is_asked_for_while_nothing_expires(ledger, organisation, hospital) -> None:
    """One look at a blob's expiry is one request to the precompile."""
    asked = []
    real = ledger._answer_info
    ledger._answer_info = lambda data: asked.append(data) or real(data)
    hospital.run(organisation.publish(make_task(rounds=3)).number, samples=50)
    assert asked == []


def test_a_file_that_nodes_dropped_is_brought_back_from_memory(
    ledger, organisation, hospital
) -> None:
    """The base expires while the client trains on it."""
    task = organisation.publish(make_task()).number
    hold = 29 * DAY_SECONDS
    pause_before_round_two(ledger, task, 29, open_round(ledger))

    @hospital.train
    def train_for_long(model, ctx):
        if ctx.round == 2:
            state = ledger.tasks[task].rounds[2]
            state.commit_ends, state.reveal_ends = ledger.timestamp + hold, ledger.timestamp + hold
            state.reveal_ends += 100
            ledger.sleep(2 * DAY_SECONDS)
            assert ledger.tasks[task].model not in ledger.blobs
        return train(model, ctx)

    assert hospital.run(task, samples=50).submitted == 2
    assert ledger.tasks[task].model in ledger.blobs


def add_velocity(ledger: Ledger, task: int, expires_in: int) -> None:
    """Round 2 has a velocity that may be read for so long when it opens."""
    agreement = ledger.agreement
    name = ledger.add_blob(VELOCITY)
    real = agreement._open

    def open_with_velocity(number, state):
        if state.round == 1:
            state.velocity = name
            agreement.expiries[name] = ledger.timestamp + expires_in
        real(number, state)

    agreement._open = open_with_velocity


def test_a_velocity_that_expires_too_soon_is_fetched_and_declared_again(
    ledger, organisation, hospital
) -> None:
    task = organisation.publish(make_task()).number
    add_velocity(ledger, task, expires_in=DAY_SECONDS)
    assert hospital.run(task, samples=50).submitted == 2
    assert list_carried(ledger, "commit")[1] == (2, [compute_blob_name(VELOCITY)])


@pytest.mark.slow
def test_a_velocity_that_nobody_keeps_costs_the_round_and_says_so(
    ledger, organisation, hospital, lines
) -> None:
    task = organisation.publish(make_task(rounds=3)).number
    add_velocity(ledger, task, expires_in=-1)
    summary = hospital.run(task, samples=50)
    assert (summary.state, summary.submitted) == (TaskState.FINISHED, 1)
    (told,) = [line for line in lines if line.startswith("round 2: commit refused")]
    assert "no node keeps it any more" in told
    assert all(not blobs for _, blobs in list_carried(ledger, "commit"))


def test_a_velocity_of_other_bytes_is_never_declared(
    ledger, organisation, hospital, tmp_path
) -> None:
    task = organisation.publish(make_task()).number
    add_velocity(ledger, task, expires_in=DAY_SECONDS)
    name = compute_blob_name(VELOCITY)

    def answer(request: httpx.Request) -> httpx.Response:
        if name in ledger.blobs:
            ledger.blobs[name] = VELOCITY[:-1] + b"!"
        return ledger.answer(request)

    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
        client.train(train)
        with pytest.raises(Exception, match="blob_mismatch"):
            client.run(task, samples=50)
    assert all(name not in sent.blobs for sent in ledger.included)


def test_a_late_commitment_keeps_the_base_that_it_was_trained_on(
    ledger, organisation, hospital
) -> None:
    """Round 1 was made on the first base, round 2 has another."""
    task = organisation.publish(make_task(rounds=3, max_staleness=2)).number
    first = ledger.tasks[task].model
    agreement = ledger.agreement
    agreement.choose = lambda task, number, seats: seats if number == 1 else []
    real = agreement._open

    def open_on_another_model(number, state):
        if state.round == 1:
            state.model = ledger.add_blob(b"another model")
            agreement.expiries[state.model] = ledger.timestamp + 30 * DAY_SECONDS
            agreement.expiries[first] = ledger.timestamp + DAY_SECONDS
        real(number, state)

    agreement._open = open_on_another_model

    @hospital.train
    def slow(model, ctx):
        ledger.sleep(76)
        return train(model, ctx)

    assert hospital.run(task, samples=50).submitted == 1
    (late,) = [call for _, call in find_sent(ledger, "commit") if call["origin"] < call["round"]]
    assert (late["round"], late["origin"]) == (2, 1)
    assert (2, [first]) in list_carried(ledger, "commit")


def test_a_reveal_declares_a_base_again_that_expired_meanwhile(
    ledger, organisation, hospital
) -> None:
    """Closes that came days late: the round was extended and its base is gone."""
    task = organisation.publish(
        make_task(rounds=1, on_failed_quorum="extend", max_extensions=1)
    ).number
    base = ledger.tasks[task].model
    agreement = ledger.agreement
    real = ledger._include

    def include_and_extend(transaction):
        real(transaction)
        if ledger.tasks[task].round == 1 and ledger.tasks[task].rounds[1].done:
            ledger.tasks[task].rounds[1].extensions = 1
            agreement.expiries[base] = 0

    ledger._include = include_and_extend
    assert hospital.run(task, samples=50).submitted == 1
    ((_, carried),) = list_carried(ledger, "reveal")
    assert base in carried
    assert len(carried) == 2


def test_a_kill_sends_the_bytes_that_were_signed_with_what_they_carry(
    ledger, organisation, tmp_path: Path
) -> None:
    """Killed once the commitment that declares the base again has left; the base is gone then."""

    class Killed(BaseException):
        pass

    task = organisation.publish(make_task()).number
    base = ledger.tasks[task].model
    pause_before_round_two(ledger, task, 29, open_round(ledger))
    lives = {"left": 1}

    def answer(request: httpx.Request) -> httpx.Response:
        answered = ledger.answer(request)
        is_carried = any(base in sent.blobs for sent in ledger.pool.values())
        if lives["left"] and is_carried and ledger.tasks[task].round == 2:
            lives["left"] -= 1
            ledger.blobs.pop(base)
            raise Killed
        return answered

    def live() -> None:
        with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
            client.train(train)
            client.run(task, samples=50)

    with pytest.raises(Killed):
        live()
    live()
    assert [blobs for _, blobs in list_carried(ledger, "commit")] == [[], [base]]
    mine = [
        sent.nonce
        for sent in map(decode_transaction, ledger.seen)
        if sent.sender == bytes.fromhex(HOSPITAL.address[2:])
    ]
    assert len(mine) == len(set(mine)), "two transactions with one nonce"


def test_what_does_not_fit_into_one_block_goes_ahead(
    ledger, organisation, hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = organisation.publish(make_task()).number
    base = ledger.tasks[task].model
    pause_before_round_two(ledger, task, 29, open_round(ledger))
    add_velocity(ledger, task, expires_in=DAY_SECONDS)
    monkeypatch.setattr(renewing, "MAX_BLOB_BYTES_PER_BLOCK", base.size)
    assert hospital.run(task, samples=50).submitted == 2
    assert list_carried(ledger, "commit")[1] == (2, [base])
    velocity = compute_blob_name(VELOCITY)
    (alone,) = [sent for sent in ledger.included if sent.blobs == (velocity,)]
    assert (alone.to, alone.data, alone.value) == (alone.sender, b"", 0)


def test_two_files_that_any_task_may_have_fit_into_two_blocks() -> None:
    assert params.MAX_BLOB_BYTES <= params.MAX_BLOB_BYTES_PER_BLOCK < 2 * params.MAX_BLOB_BYTES


# -- the organisation ------------------------------------------------------------------------------
@pytest.mark.parametrize(("days", "is_renewed"), [(20, False), (29, True)])
def test_who_resumes_a_task_declares_again_what_its_participants_will_need(
    ledger, organisation, hospital, days: int, is_renewed: bool
) -> None:
    published = organisation.publish(make_task())
    pause_before_round_two(ledger, published.number, days, lambda number, state: None)

    def resume_when_told(line: str) -> None:
        if line.startswith("paused"):
            published.resume()

    hospital.report = resume_when_told
    assert hospital.run(published.number, samples=50).submitted == 2
    ((resumed, _),) = find_sent(ledger, "resume")
    assert list(resumed.blobs) == ([ledger.tasks[1].model] if is_renewed else [])


def test_a_task_whose_model_nobody_keeps_is_not_resumed(ledger, organisation) -> None:
    published = organisation.publish(make_task(max_clients=2))
    state = ledger.tasks[published.number]
    state.state = TaskState.PAUSED
    ledger.now += 31 * DAY_SECONDS
    ledger.mine()
    with pytest.raises(BlobGone, match="no node keeps it") as caught:
        published.resume()
    assert caught.value.code == "blob_missing"
    assert find_sent(ledger, "resume") == []


def test_a_lobby_is_started_with_what_its_first_round_needs(ledger, organisation, hospital) -> None:
    longest = 29 * DAY_SECONDS - 100
    published = organisation.publish(make_task(max_clients=2, join_seconds=longest))
    hospital.join(published.number, 50)
    ledger.now += longest - 1_000
    ledger.mine()
    published.start()
    ((started, _),) = find_sent(ledger, "start")
    assert list(started.blobs) == [ledger.tasks[1].model]
    assert hospital.run(published.number).submitted == 2
    assert all(not blobs for _, blobs in list_carried(ledger, "commit"))


def test_a_pause_that_is_not_in_effect_yet_is_taken_back_for_nothing(
    ledger, organisation, hospital
) -> None:
    published = organisation.publish(make_task())

    @hospital.train
    def pause_and_resume(model, ctx):
        published.pause()
        ledger.agreement.expiries.clear()
        published.resume()
        ledger.agreement.expiries[ledger.tasks[1].model] = ledger.timestamp + 30 * DAY_SECONDS
        return train(model, ctx)

    assert hospital.run(published.number, samples=50).submitted == 2
    assert all(not sent.blobs for sent, _ in find_sent(ledger, "resume"))


@pytest.mark.slow
# -- refusals --------------------------------------------------------------------------------------
def test_a_refusal_for_want_of_time_that_reached_a_block_costs_that_round_only(
    ledger, organisation, hospital, lines
) -> None:
    """Its bytes are spent: the label is not used for other bytes."""
    task = organisation.publish(make_task(rounds=2)).number
    real, refused = ledger._include, []

    def expire_before_the_block(transaction):
        if ledger.tasks[task].round == 1 and not refused:
            refused.append(ledger.agreement.expiries.copy())
            ledger.agreement.expiries.clear()
        real(transaction)

    ledger._include = expire_before_the_block
    assert hospital.run(task, samples=50).submitted == 1


def test_an_applicant_to_be_is_told_the_command(ledger, organisation, hospital) -> None:
    rpc = open_rpc(ledger)
    closed = organisation.publish(make_task(admission="invited")).number
    asked = organisation.publish(make_task(admission="applicants", max_clients=2)).number

    def examine(task: int) -> str:
        finding = doctor.examine_task(rpc, hospital.address, task)
        assert finding.is_good is False
        return finding.detail

    assert examine(closed).endswith("does not invite this account")
    assert f"`steelyard client apply {asked}`" in examine(asked)
    hospital.apply(asked)
    assert "has applied" in examine(asked)
