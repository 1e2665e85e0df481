"""A round told from a node's answers: whatever happened in it, and whatever the node makes up."""

from typing import Any

import pytest

from steelyard.client import events, refusals
from steelyard.client.commands.rounds import format_explanation
from steelyard.client.contracts import compute_commitment
from steelyard.client.errors import NodeRefused, Reverted
from steelyard.client.events import MAX_HEIGHT, MAX_LOG_BLOCKS, PATIENCE, get_events
from steelyard.client.explain import explain_round
from steelyard.client.organisation import PublishedTask
from steelyard.client.records import RoundState
from steelyard.client.transactions import Call
from steelyard.client.watching import compute_means

from .agreement import CHAIN_ID
from .conftest import make_task, open_rpc
from .ledger import Ledger, Refused, make_blob_name

SITES = [bytes([n]) * 20 for n in (1, 2, 3)]
SALT = b"\5" * 32
ROWS = 30


def play(
    ledger: Ledger, published: PublishedTask, silent: set[bytes], absent: set[bytes] = frozenset()
) -> None:
    """Everybody joins and commits in round 1; the silent never reveal; the round ends."""
    agreement, task = ledger.agreement, published.number
    least = published.get_info().parameters.compute_stake(ROWS)
    for site in SITES:
        ledger.mine()
        agreement.do_join(site, least, task, ROWS)
    names = {site: make_blob_name(site) for site in SITES}
    active = [site for site in SITES if site not in absent]
    for site in active:
        about = (CHAIN_ID, task, 1, 1, site, names[site], ROWS, SALT)
        agreement.do_commit(site, 0, task, 1, 1, compute_commitment(*about))
    ledger.sleep(max(0, agreement.tasks[task].rounds[1].commit_ends - ledger.timestamp))
    if agreement.tasks[task].rounds[1].state != RoundState.OPEN:
        return  # too few have committed
    for site in active:
        if site not in silent:
            agreement.do_reveal(site, 0, task, 1, 1, names[site], ROWS, SALT)
    ledger.sleep(26)
    ledger.mine()


def publish(organisation, **changes: Any) -> PublishedTask:
    terms = {"min_clients": 3, "max_clients": 3, "stake_per_sample": 1, "reward": 2_000_000}
    return organisation.publish(make_task(**terms | changes))


def tell(ledger: Ledger, task: int = 1) -> str:
    return format_explanation(explain_round(open_rpc(ledger), task, 1), details=True)


# -- what happened ---------------------------------------------------------------------------------
def test_a_round_that_made_a_model_adds_up_to_the_last_wei(ledger, organisation) -> None:
    play(ledger, publish(organisation, platform=b"\7" * 20, platform_share=0.1), silent=set())
    told = explain_round(open_rpc(ledger), 1, 1)
    payment = told.payment
    assert told.state is RoundState.AGGREGATED
    assert payment.pool == 1_000_000 == payment.platform + payment.paid + payment.dust
    assert payment.platform == 1_000_000 * 104_857 >> 20
    assert payment.paid == sum(part.paid for part in told.parts)
    text = tell(ledger)
    assert "draw    all 3 who were ready" in text
    assert f"fee     1000000 * 104857 >> 20 = {payment.platform} wei" in text
    assert text.count("30 samples << 20 = 31457280") == 3


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ({}, 30 << 20),
        ({"weighting": "uniform"}, 1 << 20),
        ({"weighting": "stake", "base_stake": 50, "bond": 50}, 80 << 20),
    ],
)
def test_a_round_that_a_silence_failed_shows_what_the_others_got(
    ledger, organisation, changes: dict[str, Any], weight: int
) -> None:
    published = publish(organisation, **changes)
    play(ledger, published, silent={SITES[2]})
    told = explain_round(open_rpc(ledger), 1, 1)
    share = 2**20 // 3
    assert told.state is RoundState.SKIPPED
    assert "those who revealed are paid" in told.consequence
    assert [part.paid for part in told.parts] == [1_000_000 * share >> 20] * 2 + [None]
    assert [part.outcome for part in told.parts[:2]] == ["revealed, others did not"] * 2
    assert told.parts[2].outcome.startswith("committed, never revealed")
    assert [ledger.tasks[1].claimable.get(site, 0) for site in SITES] == [
        part.paid or 0 for part in told.parts
    ]
    text = tell(ledger)
    assert f"{weight} * 1048576 / {3 * weight} = {share} of 1048576, rounded down" in text
    assert "pool 1000000 = platform 0 + paid" in text
    assert "but the record says" not in text


def test_a_round_without_enough_commitments_pays_nobody(ledger, organisation) -> None:
    play(ledger, publish(organisation, rounds=1), silent=set(), absent={SITES[0]})
    told = explain_round(open_rpc(ledger), 1, 1)
    assert (told.state, told.payment) == (RoundState.SKIPPED, None)
    assert [part.outcome for part in told.parts] == [
        "drawn, did not commit", *["committed, too few others did"] * 2,
    ]  # fmt: skip
    assert "it was the last round" in told.consequence


def test_a_draw_tells_how_many_of_whom_and_from_which_seed(ledger, organisation) -> None:
    ledger.agreement.choose = lambda task, number, seats: [0, 2]
    published = publish(organisation, min_clients=1, fraction_fit=0.5)
    play(ledger, published, silent=set(), absent={SITES[1]})
    text = tell(ledger)
    assert "2 of 3 who were ready: max(1, ceil(3 * 524288 / 1048576) = 2) + 0 to spare" in text
    assert "seats 0 2" in text
    assert explain_round(open_rpc(ledger), 1, 1).parts[1].outcome == "not drawn"


def test_momentum_and_learning_rate_are_told_as_the_chain_steps(ledger, organisation) -> None:
    play(ledger, publish(organisation, momentum=0.9, server_lr=0.5), silent=set())
    assert "step    v = mean + 3686/4096 * v before (none); model = base + 2048/4096 * v" in tell(
        ledger
    )


def test_a_refused_call_is_told_with_its_reason(ledger, organisation, hospital) -> None:
    refuse_commit(ledger, organisation, hospital)
    told = explain_round(open_rpc(ledger), 1, 1)
    assert told.parts[0].refusals == (
        "commit refused: rounds: not drawn (only those who were drawn may commit; waiting costs "
        "nothing)",
    )


def refuse_commit(ledger: Ledger, organisation, hospital) -> None:
    """One transaction fails: the hospital was not drawn."""
    ledger.agreement.choose = lambda task, number, seats: []
    task = publish(organisation, min_clients=1, max_clients=4)
    hospital.join(task.number, ROWS)
    task.start()
    data = hospital.rounds.encode("commit", 1, 1, 1, b"\1" * 32)
    with pytest.raises(Reverted):
        hospital.outbox.send("commit", Call(hospital.rounds.address, data, gas=10**6))


# -- what a node makes up --------------------------------------------------------------------------
def change_events(ledger: Ledger, name: str, **changes: Any) -> None:
    """Have the node answer with other values in each event of that name."""
    log = ledger.agreement.log
    ledger.agreement.log = lambda kind, indexed, values: log(
        kind,
        indexed,
        values if kind != name else [changes.get(str(i), v) for i, v in enumerate(values)],
    )


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("Aggregated", "4", [2**255, 1, 1]),
        ("Aggregated", "4", [1]),
        ("Aggregated", "7", []),
        ("Aggregated", "9", [0]),
    ],
)
def test_a_made_up_record_is_a_typed_error(
    ledger, organisation, name: str, place: str, value: list[int]
) -> None:
    change_events(ledger, name, **{place: value})
    play(ledger, publish(organisation), silent=set())
    with pytest.raises(NodeRefused) as caught:
        explain_round(open_rpc(ledger), 1, 1)
    assert caught.value.code == "rpc_answer"


@pytest.mark.parametrize("changes", [{"1": []}, {"0": []}, {"0": [], "1": []}])
def test_made_up_lists_of_a_failed_round_are_a_typed_error(
    ledger, organisation, changes: dict[str, list]
) -> None:
    change_events(ledger, "Compensated", **changes)
    play(ledger, publish(organisation), silent={SITES[2]})
    with pytest.raises(NodeRefused, match="differ in length"):
        explain_round(open_rpc(ledger), 1, 1)


def test_a_node_that_hides_the_beginning_is_a_typed_error(ledger, organisation) -> None:
    play(ledger, publish(organisation), silent=set())
    ledger.logs = [log for log in ledger.logs if len(log["topics"]) != 3]
    with pytest.raises(NodeRefused, match="opened the round"):
        explain_round(open_rpc(ledger), 1, 1)


def test_logs_of_other_heights_and_other_tasks_are_left_out(ledger, organisation) -> None:
    play(ledger, publish(organisation), silent=set())
    honest = get_events(open_rpc(ledger), 1)
    real = ledger.eth_getLogs
    other = "0x" + (2).to_bytes(32, "big").hex()
    ledger.eth_getLogs = lambda query: [
        *real(query),
        *({**log, "blockNumber": hex(2**255)} for log in real(query)),
        *({**log, "topics": [log["topics"][0], other, *log["topics"][2:]]} for log in real(query)),
    ]
    assert get_events(open_rpc(ledger), 1) == honest


def count_requests(ledger: Ledger, name: str, answer: Any) -> list[int]:
    """Answer a method by a function; the list's only entry counts its calls."""
    count = [0]

    def reply(*arguments: Any) -> Any:
        count[0] += 1
        return answer(*arguments)

    setattr(ledger, name, reply)
    return count


def test_a_height_that_no_chain_reaches_costs_one_request(ledger, organisation) -> None:
    publish(organisation)
    count = count_requests(ledger, "eth_getLogs", lambda query: [])
    ledger.eth_blockNumber = lambda: hex(MAX_HEIGHT + 1)
    with pytest.raises(NodeRefused) as caught:
        get_events(open_rpc(ledger), 1)
    assert (caught.value.code, count[0]) == ("height_implausible", 0)


def test_a_height_that_a_chain_may_reach_costs_a_request_for_each_range(
    ledger, organisation
) -> None:
    publish(organisation)
    count = count_requests(ledger, "eth_getLogs", lambda query: [])
    ledger.eth_blockNumber = lambda: hex(100 * MAX_LOG_BLOCKS - 1)
    assert get_events(open_rpc(ledger), 1) == []
    assert count[0] == 100


def test_a_node_cannot_cut_a_walk_into_endless_steps(ledger, organisation) -> None:
    """It calls every range too full but those of a single block, and these are empty."""
    publish(organisation)

    def refuse_ranges(query: dict[str, str]) -> list[Any]:
        if query["fromBlock"] != query["toBlock"]:
            raise Refused(-32005, "logs_limit: too many", {"code": "logs_limit"})
        return []

    count = count_requests(ledger, "eth_getLogs", refuse_ranges)
    ledger.eth_blockNumber = lambda: hex(MAX_HEIGHT)
    with pytest.raises(NodeRefused) as caught:
        get_events(open_rpc(ledger), 1)
    assert caught.value.code == "logs_limit"
    assert count[0] < 3 * PATIENCE


@pytest.mark.parametrize("limit", ["MAX_EVENTS", "MAX_EVENT_BYTES"])
def test_events_that_a_node_invents_fill_no_memory(
    ledger, organisation, monkeypatch, limit: str
) -> None:
    """It serves one more in every range: what is taken in is bounded over all of them."""
    publish(organisation)
    log = ledger.logs[0]
    size = 1 if limit == "MAX_EVENTS" else len(log["data"]) // 2 - 1
    count = count_requests(
        ledger, "eth_getLogs", lambda query: [{**log, "blockNumber": query["fromBlock"]}]
    )
    ledger.eth_blockNumber = lambda: hex(3 * MAX_LOG_BLOCKS - 1)
    monkeypatch.setattr(events, limit, 3 * size)
    assert len(get_events(open_rpc(ledger), 1)) == 3
    monkeypatch.setattr(events, limit, 3 * size - 1)
    with pytest.raises(NodeRefused) as caught:
        get_events(open_rpc(ledger), 1)
    assert (caught.value.code, count[0]) == ("events_many", 6)


def test_full_ranges_of_an_honest_node_are_still_walked(ledger, organisation) -> None:
    play(ledger, publish(organisation), silent=set())
    honest, real = get_events(open_rpc(ledger), 1), ledger.eth_getLogs

    def refuse_full(query: dict[str, str]) -> list[Any]:
        if len(found := real(query)) > 12:
            raise Refused(-32005, "logs_limit: too many", {"code": "logs_limit"})
        return found

    ledger.eth_getLogs = refuse_full
    ledger.eth_blockNumber = lambda: hex(200_000)
    assert get_events(open_rpc(ledger), 1) == honest


def test_an_endless_round_is_searched_to_a_limit(ledger, organisation, monkeypatch) -> None:
    monkeypatch.setattr(refusals, "MAX_SEARCHED_BLOCKS", 50)
    publish(organisation)
    task = ledger.tasks[1]
    for site in SITES:
        ledger.agreement.do_join(site, ROWS, 1, ROWS)
    assert task.round == 1
    count = count_requests(ledger, "eth_getBlockReceipts", lambda number: [])
    ledger.eth_blockNumber = lambda: hex(50_000)
    explain_round(open_rpc(ledger), 1, 1)
    assert count[0] == 50


def test_made_up_failures_are_looked_at_to_a_limit(
    ledger, organisation, hospital, monkeypatch
) -> None:
    monkeypatch.setattr(refusals, "MAX_SEARCHED_FAILURES", 20)
    refuse_commit(ledger, organisation, hospital)
    (failed,) = [r for r in ledger.receipts.values() if r["status"] == "0x0"]
    receipt = ledger.eth_getBlockReceipts(failed["blockNumber"])
    ledger.eth_getBlockReceipts = lambda number: receipt * 21
    count = count_requests(ledger, "eth_getTransactionByHash", ledger.eth_getTransactionByHash)
    explain_round(open_rpc(ledger), 1, 1)
    assert count[0] == 20


@pytest.mark.parametrize("answer", [5, {"0": 1}, [7], [{"status": "0x0", "to": 7}]])
def test_receipts_in_another_shape_are_a_typed_error(ledger, organisation, answer: Any) -> None:
    play(ledger, publish(organisation), silent=set())
    ledger.eth_getBlockReceipts = lambda number: answer
    with pytest.raises(NodeRefused) as caught:
        explain_round(open_rpc(ledger), 1, 1)
    assert caught.value.code == "rpc_answer"


@pytest.mark.parametrize("sent", [None, [], {}, {"input": "0x", "from": "0x12"}])
def test_transactions_in_another_shape_are_a_typed_error(
    ledger, organisation, hospital, sent: Any
) -> None:
    refuse_commit(ledger, organisation, hospital)
    ledger.eth_getTransactionByHash = lambda name: sent
    with pytest.raises(NodeRefused) as caught:
        explain_round(open_rpc(ledger), 1, 1)
    assert caught.value.code == "rpc_answer"


@pytest.mark.parametrize(("place", "value"), [("round", 2**255), ("round", 3), ("wish", 9)])
def test_a_task_that_no_contract_has_is_a_typed_error(
    ledger, organisation, place: str, value: int
) -> None:
    publish(organisation)
    setattr(ledger.tasks[1], place, value)
    with pytest.raises(NodeRefused) as caught:
        organisation.tasks.get_task(1)
    assert caught.value.code == "rpc_answer"


def test_a_round_in_an_unknown_state_is_a_typed_error(ledger, organisation) -> None:
    play(ledger, publish(organisation), silent=set())
    ledger.tasks[1].rounds[1].state = 77
    with pytest.raises(NodeRefused, match="RoundState 77"):
        explain_round(open_rpc(ledger), 1, 1)


def test_reports_of_no_samples_have_a_mean() -> None:
    assert compute_means([(0, [5])]) == (0.0,)
    assert compute_means([(1, [2**20]), (3, [0])]) == (0.25,)
