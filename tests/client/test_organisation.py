"""Publishing: checked before it costs anything, once and only once; watching and fetching."""

import json
from pathlib import Path

import numpy as np
import pytest

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.model import decode_model
from steelyard.client import reserve
from steelyard.client.bundle import decode_bundle, read_config
from steelyard.client.drafting import build_rule, draft_task
from steelyard.client.errors import ClientError, InvalidTask, NodeUnreachable, Reverted
from steelyard.client.events import get_events
from steelyard.client.organisation import Released
from steelyard.client.records import TaskState
from steelyard.client.reserve import compute_closing
from steelyard.client.watching import watch_task

from .conftest import CHAIN, make_model, make_task


def draft(**changes):
    return draft_task(make_task(**changes), **CHAIN)


def test_a_task_is_published_with_its_files_and_its_escrow(ledger, organisation) -> None:
    task = organisation.publish(make_task(config={"local_epochs": 3}, bits=16))
    info = task.get_info()
    assert (info.state, info.name, info.parameters.bits) == (TaskState.LOBBY, "heart", 16)
    assert (
        ledger.tasks[1].left
        == info.parameters.escrow
        == info.parameters.reward + (info.parameters.rounds * info.parameters.close_reserve)
    )
    config = read_config(decode_bundle(ledger.blobs[info.bundle]))
    assert config == {"local_epochs": 3, "metrics": "accuracy,loss"}
    assert decode_model(ledger.blobs[info.model]).manifest.parameters == 8


def test_publishing_again_gives_the_same_task(ledger, organisation) -> None:
    first = organisation.publish(make_task())
    ledger.eth_maxPriorityFeePerGas = lambda: "0x5"
    assert organisation.publish(make_task()).number == first.number
    assert organisation.publish(make_task(reference="again")).number == first.number + 1
    assert len(ledger.tasks) == 2


def test_a_round_that_could_not_be_closed_in_a_block_cannot_be_published() -> None:
    for changes in ({"max_clients": 128}, {"max_clients": 12, "rounds": 3}):
        with pytest.raises(InvalidTask, match="task_capacity"):
            draft_task(make_task(**changes), **CHAIN | {"gas_limit": 1_600_000})


def test_norms_are_exact_integers_on_chain() -> None:
    parameters = draft(admission_norm=0.1, rule="clipped", clip_norm=1.5).parameters
    exact = (0.1).as_integer_ratio()
    assert parameters.admission_norm2 == exact[0] ** 2 * 2**48 // exact[1] ** 2
    assert (parameters.rule.kind, parameters.rule.bound) == (1, 3 * 2**23)


def test_commit_and_reveal_fill_the_round() -> None:
    parameters = draft(round_seconds=100).parameters
    assert (parameters.commit_seconds, parameters.reveal_seconds) == (75, 25)
    parameters = draft(commit_seconds=10, reveal_seconds=4).parameters
    assert (parameters.commit_seconds, parameters.reveal_seconds) == (10, 4)


def test_closing_gas_grows_with_clients_and_parameters() -> None:
    small, large = draft().model, draft(model={"w": np.zeros(100_000, np.float32)}).model
    rule = build_rule(make_task())
    gas = [
        compute_closing(rule, model, clients, 60_000_000).gas
        for model, clients in [(small, 1), (large, 1), (large, 100)]
    ]
    assert gas == sorted(set(gas))


def test_a_round_that_does_not_fit_into_a_block_is_closed_in_pages() -> None:
    krum = {"rule": "multi_krum", "byzantine": 1, "min_clients": 5, "max_clients": 128}
    task = make_task(model={"w": np.zeros(2_000_000, np.float32)}, **krum)
    whole = draft_task(task, **CHAIN).closing
    paged = draft_task(task, **CHAIN | {"gas_limit": 20_000_000}).closing
    assert whole.calls == 1
    assert paged.calls > 2
    assert paged.gas > whole.gas


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLOSE_GAS", reserve.CLOSE_GAS),
        ("CLOSE_GAS_PER_CLIENT", reserve.CLOSE_GAS_PER_CLIENT),
        ("CLOSE_BLOCK_NUMERATOR", reserve.CLOSE_BLOCK_PART.numerator),
        ("CLOSE_BLOCK_DENOMINATOR", reserve.CLOSE_BLOCK_PART.denominator),
    ],
)
def test_closing_is_reckoned_as_the_contract_does(name: str, value: int) -> None:
    source = (Path(__file__).parents[2] / "contracts" / "capacity.vy").read_text("utf-8")
    assert f"{name}: constant(uint256) = {value:_}\n" in source


def test_a_task_that_fills_the_contracts_part_of_a_block_may_be_published() -> None:
    plain, rule = draft(), build_rule(make_task())
    gas = plain.closing.gas
    assert compute_closing(rule, plain.model, 1, -(-gas * 4 // 3)).gas == gas
    with pytest.raises(InvalidTask, match="task_capacity"):
        compute_closing(rule, plain.model, 1, (gas - 1) * 4 // 3)


def test_a_task_whose_publishing_fills_a_block_may_be_published_and_no_larger_one() -> None:
    gas = draft().gas
    assert draft_task(make_task(), **CHAIN | {"gas_limit": gas}).gas == gas
    with pytest.raises(InvalidTask, match="task_capacity: publishing may need"):
        draft_task(make_task(), **CHAIN | {"gas_limit": gas - 1})


def test_a_reserve_below_the_bounty_is_refused_before_it_costs_anything() -> None:
    with pytest.raises(InvalidTask, match="task_close_reserve"):
        draft(close_reserve=1)


def test_the_model_comes_back_as_an_ordinary_safetensors_file(
    ledger, organisation, tmp_path
) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    task = organisation.publish(make_task())
    path = task.model().save(tmp_path / "out" / "heart.safetensors")
    loaded = safetensors.load_file(path)
    for name, array in make_model().items():
        assert np.allclose(loaded[name], array, atol=2**-24)
    exact = task.model().save_exact(tmp_path / "heart.model").read_bytes()
    assert compute_blob_name(exact) == task.get_info().model


def test_a_model_that_no_round_made_is_an_error(organisation) -> None:
    task = organisation.publish(make_task())
    with pytest.raises(ClientError) as caught:
        task.model(round_number=1)
    assert caught.value.code == "model_unknown"


def test_an_unknown_task_is_an_error(organisation) -> None:
    with pytest.raises(ClientError, match="no task 9") as caught:
        organisation.get_task(9)
    assert caught.value.code == "task_unknown"


def test_watching_tells_the_whole_story_from_the_beginning(organisation, hospital) -> None:
    task = organisation.publish(make_task())
    hospital.run(task.number, samples=50)
    events = list(task.watch())
    kinds = [event.kind for event in events]
    reporting = "EvaluationRequested"
    one_round = ["RoundOpened", "Committed", "Revealed", "Aggregated", reporting]
    ends = ["Finished", "Claimed"]
    assert kinds == ["Published", "Joined", "Started", *one_round, *one_round, *ends]
    assert [e.round for e in events if e.kind == "Aggregated"] == [1, 2]
    assert [e.submitted for e in events if e.kind == "Aggregated"] == [1, 1]
    assert all(str(event) for event in events)


def test_what_is_left_returns_to_the_publisher_once(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task())
    hospital.run(task.number, samples=50)
    left = ledger.tasks[1].left
    assert task.refund() == left > 0
    assert task.refund() == 0


def test_a_model_that_does_not_fit_names_its_tensor() -> None:
    with pytest.raises(Exception, match="weight") as caught:
        draft(model={"weight": np.array([np.nan], np.float32)})
    assert caught.value.code == "model_not_finite"


def test_the_identity_of_a_task_does_not_depend_on_fees() -> None:
    cheap = draft()
    dear = draft_task(make_task(), **CHAIN | {"base_fee": 7_000, "tip": 100})
    assert cheap.label == dear.label
    assert cheap.parameters != dear.parameters
    assert draft(rounds=3).label != cheap.label
    assert json.dumps(cheap.label)


def test_a_bounty_does_not_follow_a_lying_nodes_tip(ledger, organisation) -> None:
    """The node that suggests the tip may be the one that closes the rounds."""
    ledger.eth_maxPriorityFeePerGas = lambda: hex(10**15)
    with pytest.raises(ClientError, match="fee_high"):
        organisation.publish(make_task())
    assert ledger.tasks == {}


def test_events_of_a_node_that_is_behind_are_not_taken_for_all(ledger, organisation) -> None:
    """Heads may come from one node and logs from another, which does not have them all yet."""
    task = organisation.publish(make_task())
    heights = [int(ledger.eth_blockNumber(), 16)]
    ledger.eth_blockNumber = lambda: hex(heights.pop(0) if len(heights) > 1 else heights[0])
    heights[:] = [heights[0] + 3, heights[0]]
    with pytest.raises(NodeUnreachable, match="only at height"):
        get_events(organisation.rpc, task.number)


def test_watching_repeats_nothing_when_a_node_falls_behind(ledger, organisation) -> None:
    task = organisation.publish(make_task())
    head = int(ledger.eth_blockNumber(), 16)
    heads = iter([head, head, head, head - 1, head - 1])
    ledger.eth_blockNumber = lambda: hex(next(heads, head))
    pauses = iter([None, None, None])
    watching = watch_task(organisation.rpc, task.number, lambda: next(pauses))
    assert next(watching).kind == "Published"
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(watching)


def test_a_stake_whose_owner_never_left_is_released_when_the_task_is_over(
    ledger, organisation, hospital
) -> None:
    task = organisation.publish(make_task(base_stake=100, rounds=1, max_clients=2))
    task.sponsor(hospital.address, stake=70)
    hospital.join(task.number, 5)
    with pytest.raises(Reverted, match="not over"):
        task.release(hospital.address)
    task.cancel()
    assert task.release(hospital.address) == Released(own=30, sponsored=70)
    assert task.release(hospital.address) == Released(own=0, sponsored=0)
    assert (hospital.claim(task.number), task.claim()) == (30, 70)
    with pytest.raises(InvalidTask, match="task_allow"):
        task.release("nobody")
