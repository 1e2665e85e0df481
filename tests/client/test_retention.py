"""A model that would expire before its first round is closed: refused before it costs anything."""

from dataclasses import replace

import httpx
import pytest

from steelyard.chain.block import encode_block
from steelyard.chain.execute import CallRequest, CallResult
from steelyard.chain.genesis import encode_genesis
from steelyard.client.contracts import encode_name, get_contract
from steelyard.client.drafting import Draft, check_task, draft_task
from steelyard.client.errors import InvalidTask, NodeRefused, Reverted
from steelyard.client.founding import fetch_genesis
from steelyard.client.retention import compute_slack, format_seconds
from tests.chain.evm_kit import declare

from .agreement import TasksRefusal
from .conftest import CHAIN, URL, make_task, open_rpc
from .ledger import Ledger, Refused
from .quiet import ADDRESSES, PUBLISHER, QuietChain

HOUR, DAY = 3_600, 86_400
EXTENDED = {"on_failed_quorum": "extend", "max_extensions": 16}


def draft(**changes):
    return draft_task(make_task(**changes), **CHAIN)


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"join_seconds": 30 * DAY}, f"join_seconds at most {29 * DAY - 100}$"),
        (
            {"join_seconds": 20 * DAY, "round_seconds": 15 * DAY},
            f"join_seconds at most {14 * DAY}, or commit_seconds and reveal_seconds together at "
            f"most {9 * DAY}$",
        ),
        (
            {"join_seconds": 10 * DAY, "round_seconds": 2 * DAY, **EXTENDED},
            f"together at most {19 * DAY // 17}, or max_extensions at most 8$",
        ),
        (
            {"join_seconds": 30 * DAY, "commit_seconds": 30 * DAY, "reveal_seconds": 30 * DAY},
            "lobby, periods and extensions shorter$",
        ),
    ],
)
def test_a_task_that_outlives_its_model_is_refused_with_what_to_shorten(changes, cure) -> None:
    with pytest.raises(InvalidTask, match=cure) as caught:
        draft(**changes)
    assert caught.value.code == "task_retention"
    assert "keeps a model for 30 d," in caught.value.message


@pytest.mark.parametrize("extended", [{}, EXTENDED])
def test_what_is_advised_is_accepted_to_the_second(extended) -> None:
    periods = 100 * (17 if extended else 1)
    longest = 29 * DAY - periods
    draft(join_seconds=longest, **extended)
    with pytest.raises(InvalidTask, match=f"take 1 s more; make join_seconds at most {longest}"):
        draft(join_seconds=longest + 1, **extended)


def test_a_model_that_is_kept_hardly_long_enough_is_warned_of() -> None:
    longest = 29 * DAY - 100
    (told,) = [text for text in draft(join_seconds=longest - HOUR).warnings if "keeps" in text]
    assert "only 1 h longer" in told
    kept = draft(join_seconds=longest - DAY)
    assert not any("keeps" in text for text in kept.warnings)
    assert compute_slack(kept.parameters, kept.retention_seconds) == DAY


def test_a_time_is_told_in_its_units() -> None:
    assert format_seconds(2 * DAY + 3 * HOUR + 61) == "2 d 3 h 1 min 1 s"
    assert format_seconds(0) == "0 s"


# -- the chain's own time --------------------------------------------------------------------------
def test_a_check_reckons_with_what_the_chain_keeps(ledger: Ledger) -> None:
    ledger.retention_seconds = 2 * DAY
    rpc = open_rpc(ledger)
    assert check_task(rpc, make_task(join_seconds=HOUR)).retention_seconds == 2 * DAY
    with pytest.raises(InvalidTask, match="keeps a model for 2 d"):
        check_task(rpc, make_task(join_seconds=DAY))


def test_nothing_is_sent_for_a_task_that_outlives_its_model(ledger: Ledger, organisation) -> None:
    with pytest.raises(InvalidTask, match="task_retention"):
        organisation.publish(make_task(join_seconds=30 * DAY))
    assert not ledger.seen


def lie(ledger: Ledger, path: str, data: bytes):
    """A node with other bytes at one address."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == path:
            return httpx.Response(200, content=data)
        return ledger.answer(request)

    return open_rpc(ledger, answer)


def test_a_node_cannot_claim_that_files_are_kept_longer(ledger: Ledger) -> None:
    generous = replace(ledger.genesis, blob_retention_seconds=90 * DAY)
    with pytest.raises(NodeRefused, match=f"{URL} serves the genesis of another chain"):
        fetch_genesis(lie(ledger, "/chain/genesis", encode_genesis(generous)))
    header = replace(ledger.first_block.header, extra_data=generous.hash)
    forged = replace(ledger.first_block, header=header)
    with pytest.raises(NodeRefused, match="another chain"):
        fetch_genesis(lie(ledger, "/chain/blocks/0", encode_block(forged)))
    assert fetch_genesis(open_rpc(ledger)) == ledger.genesis


@pytest.mark.parametrize("path", ["/chain/genesis", "/chain/blocks/0"])
def test_a_node_without_a_genesis_is_an_error_with_a_code(ledger: Ledger, path: str) -> None:
    with pytest.raises(NodeRefused, match="serves no genesis") as caught:
        fetch_genesis(lie(ledger, path, b"{}"))
    assert caught.value.code == "rpc_answer"


# -- the safety net --------------------------------------------------------------------------------
def test_what_no_check_foresaw_is_refused_by_the_contract_before_it_costs(
    ledger: Ledger, organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract of a chain may be stricter than this client knows."""

    def refuse(*_arguments, **_names) -> None:
        raise TasksRefusal("tasks: not on Sundays")

    monkeypatch.setattr(ledger.agreement, "do_publish", refuse)
    with pytest.raises(Reverted, match="not on Sundays"):
        organisation.publish(make_task())
    assert not ledger.seen
    monkeypatch.undo()
    assert organisation.publish(make_task()).number == 1


def test_what_was_signed_is_not_tried_out_again(ledger: Ledger, organisation) -> None:
    organisation.publish(make_task())
    ledger.methods.clear()
    assert organisation.publish(make_task()).number == 1
    called = "eth_call" in ledger.methods
    assert not called


def test_a_node_that_cannot_try_out_keeps_nobody_from_publishing(
    ledger: Ledger, organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit on calls may stop the contract anywhere: then no reason comes back."""
    real = ledger.eth_call
    tried = []

    def stop(call, tag):
        if "accessList" in call:
            tried.append(call)
            raise Refused(3, "execution reverted", "0x")
        return real(call, tag)

    monkeypatch.setattr(ledger, "eth_call", stop)
    assert organisation.publish(make_task()).number == 1
    assert len(tried) == 1


# -- the contract ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chain() -> QuietChain:
    return QuietChain()


def try_publish(chain: QuietChain, draft: Draft, gas: int | None = None) -> CallResult:
    """Publish as a draft says, on the true contracts; nothing of it stays."""
    names = [chain.put(data) for data in draft.blobs.values()]
    model, bundle = chain.put(draft.model), chain.put(draft.bundle)
    contract = get_contract("Tasks")
    arguments = (draft.name, draft.parameters.encode(), encode_name(model), encode_name(bundle))
    request = CallRequest(
        sender=ADDRESSES[PUBLISHER],
        to=contract.address,
        value=draft.escrow,
        data=contract.encode_call("publish", *arguments, draft.allow),
        gas=gas,
        access_list=declare(*names),
    )
    return chain.chain.call(request)


@pytest.mark.parametrize("extended", [{}, EXTENDED])
def test_the_contract_takes_the_last_second_and_refuses_the_next(
    chain: QuietChain, extended
) -> None:
    """A draft at the client's own limit, and the same one with a second more of lobby."""
    longest = 29 * DAY - 100 * (17 if extended else 1)
    kept = draft(join_seconds=longest, **extended)
    assert compute_slack(kept.parameters, chain.chain.genesis.blob_retention_seconds) == 0
    assert try_publish(chain, kept).error is None
    longer = replace(kept, parameters=replace(kept.parameters, join_seconds=longest + 1))
    refused = try_publish(chain, longer)
    assert refused.is_revert
    assert b"rounds: model expires too soon" in refused.output


def test_the_gas_that_publishing_carries_is_enough_for_the_longest_lists(chain: QuietChain) -> None:
    people = ["0x" + f"{number:040x}" for number in range(1, 129)]
    longest = draft(name="x" * 64, allow=people, config={"note": "x" * 60_000})
    told = try_publish(chain, longest, longest.gas)
    assert told.error is None
    assert told.gas_used < longest.gas


def test_what_a_platform_earns_is_at_least_one_of_the_chains_units(chain: QuietChain) -> None:
    """A smaller share is none, and the contract takes no platform without a share."""
    kept = draft(platform="0x" + "11" * 20, platform_share=2.0**-20)
    assert kept.parameters.platform_share == 1
    assert try_publish(chain, kept).error is None
    none = replace(kept, parameters=replace(kept.parameters, platform_share=0))
    assert b"tasks: platform share out of range" in try_publish(chain, none).output
