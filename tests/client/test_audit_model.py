"""A model's ancestry on a real chain: rounds, tasks that began with a model, and publications."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.errors import InvalidBlobName
from steelyard.chain.model import decode_model, encode_model
from steelyard.chain.params import REGISTRY_ADDRESS
from steelyard.chain.types import BlobName
from steelyard.client import ancestry, finalized
from steelyard.client.ancestry import ModelReport, audit_model
from steelyard.client.commands import audits
from steelyard.client.contracts import encode_name
from steelyard.client.errors import NodeRefused
from steelyard.client.proven import Storage
from steelyard.client.rpc import as_hex
from steelyard.client.verdicts import Report, Verdict
from tests.chain.evm_kit import get_genesis_state

from .quiet import NO_FILE, QuietChain

pytestmark = pytest.mark.slow

MOVES = {0: [3, 1, 4, 1, 5, 9], 1: [2, 7, 1, 8, 2, 8]}
STRANGER = 5
STEP = 16
"""Of an update with the exponent -20, in the units of a model, 2**-24."""
FOREIGN, NEVER_NAMED = (compute_blob_name(text) for text in (b"made elsewhere", b"never named"))
Lie = Callable[[Any, Any], Any]


class Family(QuietChain):
    """Task 1 makes a model in rounds 1 and 3; task 2 begins with it and makes another; task 3 makes
    it from itself, and task 5 once more, from what lies one step below. Task 4 changes nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.publish(1, 0, 1)
        self.mine()
        self.play(1, 1, MOVES)
        self.close(1, 2)
        self.mine(100)
        self.play(1, 3, MOVES)
        self.first = self.get_round(1, 1)["base"]
        self.middle: BlobName = self.get_round(1, 3)["model"]
        self.publish(2, 0, 1, model=self.middle, rounds=2)
        self.mine()
        self.play(2, 1, MOVES)
        self.last: BlobName = self.get_round(2, 1)["model"]
        wrong_size = BlobName(self.last.digest, self.last.size + 1)
        self.say(wrong_size, 0, 0)
        self.say(FOREIGN, 0, 0)
        self.say(self.middle, 1, 3, parent=FOREIGN)
        self.say(self.last, 2, 1, parent=self.middle)
        self.mine()
        self.publish(3, 0, 1, model=self.middle)
        self.mine()
        self.play(3, 1, {0: [0] * 6, 1: [0] * 6})
        self.publish(4, 0, 1)
        self.mine()
        self.play(4, 1, {0: [0] * 6, 1: [0] * 6})
        self.idle: BlobName = self.get_round(4, 1)["model"]
        made = decode_model(self.chain.blobs.held[self.middle])
        below = self.put(encode_model(made.manifest, made.values - STEP))
        self.publish(5, 0, 1, model=below)
        self.mine()
        self.play(5, 1, {0: [1] * 6, 1: [1] * 6})

    def say(
        self, model: BlobName, task: int, number: int, *, parent: BlobName | None = None
    ) -> None:
        """Have a stranger publish a model."""
        before = NO_FILE if parent is None else encode_name(parent)
        arguments = (encode_name(model), task, number, before, NO_FILE)
        self.send(STRANGER, "Registry", "publish_model", *arguments)


@pytest.fixture(scope="module")
def family() -> Iterator[Family]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalized, "build_genesis", lambda genesis: get_genesis_state())
        yield Family()


def look(family: Family, name: BlobName, depth: int | None = 1, **lies: Lie) -> ModelReport:
    return audit_model(family.open_rpc(**lies), encode_cid(name), depth=depth)


def list_details(report: Report, link: str) -> list[str]:
    return [check.detail for check in report.checks if check.name == link]


# -- honest nodes ----------------------------------------------------------------------------------
def test_the_round_that_made_a_model_is_found_and_audited(family: Family) -> None:
    report = look(family, family.last)
    assert report.verdict is Verdict.YES, report.checks
    assert [part.subject for part in report.rounds] == ["round 1 of task 2"]
    (told,) = list_details(report, "round 1")
    assert told == f"of task 2: 10 checks agree; 2 updates on {encode_cid(family.middle)}"


def test_ancestry_is_followed_over_tasks_to_the_beginning(family: Family) -> None:
    """Round 2 of task 1 made nothing; task 2 began with what round 3 of task 1 had made."""
    report = look(family, family.last, None)
    assert report.verdict is Verdict.YES, report.checks
    assert [part.subject for part in report.rounds] == [
        "round 1 of task 2",
        "round 3 of task 1",
        "round 1 of task 1",
    ]
    began = [told for told in list_details(report, "beginning") if "began with" in told]
    assert [told.split(", ")[0] for told in began] == [
        f"task 2 began with {encode_cid(family.middle)}",
        f"task 1 began with {encode_cid(family.first)}",
    ]


@pytest.mark.parametrize(("depth", "rounds"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_no_more_rounds_are_audited_than_were_asked_for(
    family: Family, depth: int, rounds: int
) -> None:
    assert len(look(family, family.last, depth).rounds) == rounds


def test_a_model_that_a_task_began_with_is_its_publishers_word(family: Family) -> None:
    report = look(family, family.first)
    assert (report.verdict, report.rounds) == (Verdict.YES, [])
    assert any("task 1 began with" in told for told in list_details(report, "beginning"))
    (told,) = list_details(report, "registry")
    assert told.endswith("nobody had published it; proven")


def test_a_parent_is_proved_by_rounds_or_else_a_claim(family: Family) -> None:
    """That the foreign model was the parent of task 1's is in no round's record."""
    near, far, foreign = list_details(look(family, family.last, None), "registry")
    assert "round 1 of task 2 made it, proved by the contract" in near
    assert near.endswith(f"parent {encode_cid(family.middle)} (publication 3): "
                         "proved by the rounds above")  # fmt: skip
    assert "round 3 of task 1 made it, proved by the contract" in far
    assert far.endswith("a claim, its publisher's word")
    assert foreign.endswith("no round is said to have made it; names no parent")


@pytest.mark.parametrize("blocks", [2, 10_000])
def test_of_several_rounds_that_made_a_model_the_first_is_audited(
    family: Family, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    """Whoever knows a model can have it made once more, bit for bit."""
    for task in (3, 5):
        assert family.get_round(task, 1)["model"] == family.middle
    monkeypatch.setattr(ancestry, "MAX_LOG_BLOCKS", blocks)
    report = look(family, family.middle)
    assert report.verdict is Verdict.YES, report.checks
    assert [part.subject for part in report.rounds] == ["round 3 of task 1"]
    last = look(family, family.last, 2)
    assert [part.subject for part in last.rounds] == ["round 1 of task 2", "round 3 of task 1"]


def test_the_search_for_a_model_is_told_and_takes_each_block_once(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ancestry, "MAX_LOG_BLOCKS", 10)
    told: list[str] = []
    audit_model(family.open_rpc(), encode_cid(NEVER_NAMED), progress=told.append)
    head = family.chain.head.height
    ends = [(start, min(start + 9, head)) for start in range(0, head + 1, 10)]
    assert [line.split(" in blocks ")[1] for line in told] == [f"{a} to {b}" for a, b in ends]


def test_a_round_that_changed_nothing_does_not_count(family: Family) -> None:
    report = look(family, family.idle)
    assert report.verdict is Verdict.YES, report.checks
    assert [part.subject for part in report.rounds] == ["round 1 of task 4"]
    assert list_details(report, "round 1")[0].endswith(
        f"on {encode_cid(family.idle)}, which changed nothing"
    )
    assert any("task 4 began with" in told for told in list_details(report, "beginning"))


# -- no record -------------------------------------------------------------------------------------
def test_a_model_that_is_only_claimed_is_unknown(family: Family) -> None:
    report = look(family, FOREIGN)
    assert report.verdict is Verdict.UNKNOWN
    assert "no round is said to have made it" in list_details(report, "registry")[0]


def test_a_model_without_a_record_is_unknown(family: Family) -> None:
    report = look(family, NEVER_NAMED)
    assert (report.verdict, report.checks[-1].name) == (Verdict.UNKNOWN, "record")


def test_a_node_that_hides_the_record_proves_nothing(family: Family) -> None:
    report = look(family, family.last, eth_getLogs=lambda asked, logs: [])
    assert report.verdict is Verdict.UNKNOWN


def test_a_name_that_is_no_cid_is_refused(family: Family) -> None:
    with pytest.raises(InvalidBlobName):
        audit_model(family.open_rpc(), "bafy")


# -- lies ------------------------------------------------------------------------------------------
def swap_model(family: Family) -> Lie:
    """Say that round 1 of task 1 made the newest model."""
    made = family.get_round(1, 1)["model"]

    def lie(asked: Any, logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        old, new = made.digest.hex(), family.last.digest.hex()
        return [{**log, "data": log["data"].replace(old, new)} for log in logs
                if new not in log["data"]]  # fmt: skip

    return lie


def test_a_round_that_did_not_make_it_is_refuted(family: Family) -> None:
    report = look(family, family.last, eth_getLogs=swap_model(family))
    assert report.verdict is Verdict.REFUTED
    assert "but the state says" in report.rounds[0].checks[-1].detail


def test_a_changed_update_far_back_refutes_the_model(family: Family) -> None:
    update = family.updates[1, 3, 0][1]

    def flip(name: BlobName, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if name == update else data

    assert look(family, family.last, 1, blob=flip).verdict is Verdict.YES
    report = look(family, family.last, 2, blob=flip)
    assert report.verdict is Verdict.REFUTED
    assert report.summary.startswith("round 3: of task 1: blobs: update 1 of 2: digest mismatch")


def change_registry(place: int) -> Lie:
    """Change a word of what the registry stores."""

    def lie(asked: Any, proof: dict[str, Any]) -> dict[str, Any]:
        words = [dict(word) for word in proof["storageProof"]]
        if asked[0] == as_hex(REGISTRY_ADDRESS) and place < len(words):
            words[place]["value"] = hex(int(words[place]["value"], 16) ^ 1)
        return {**proof, "storageProof": words}

    return lie


@pytest.mark.parametrize("place", range(7))
def test_a_changed_publication_is_refuted(family: Family, place: int) -> None:
    report = look(family, family.last, eth_getProof=change_registry(place))
    refuted = [check.name for check in report.checks if check.verdict is Verdict.REFUTED]
    assert refuted == ["registry"]


def test_a_hidden_publication_is_refuted(family: Family) -> None:
    """That there is none must be proven too."""

    def hide(asked: Any, proof: dict[str, Any]) -> dict[str, Any]:
        if asked[0] != as_hex(REGISTRY_ADDRESS):
            return proof
        return {**proof, "storageProof": [{**proof["storageProof"][0], "value": "0x0"}]}

    assert look(family, family.last, eth_getProof=hide).verdict is Verdict.REFUTED


def test_a_forged_head_is_refuted(family: Family) -> None:
    report = look(family, family.last, certificates=lambda path, data: data[:-1] + b"\0")
    assert (report.verdict, report.checks[-1].name) == (Verdict.REFUTED, "head")


def test_a_node_cannot_write_on_the_auditors_terminal(family: Family) -> None:
    """Nor end a line, and begin one that says YES."""

    def refuse(path: Any, data: Any) -> Any:
        raise NodeRefused("unknown\x1b[2J", "no\n  finality   YES      \x1b[32m\ud800")

    report = look(family, family.last, blocks=refuse)
    assert report.verdict is Verdict.UNKNOWN
    text = audits.format_report(report)
    assert len(text.splitlines()) == 2 + len(report.checks)
    assert "\x1b" not in text
    text.encode()


# -- the command -----------------------------------------------------------------------------------
def run(family: Family, monkeypatch: pytest.MonkeyPatch, *words: str, **lies: Lie) -> Any:
    monkeypatch.setattr(audits, "open_nodes", lambda nodes: family.open_rpc(**lies))
    app = typer.Typer()
    app.add_typer(audits.app, name="audit")
    return CliRunner().invoke(app, ["audit", "model", *words])


def test_the_command_answers_for_programs_with_every_round(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(family, monkeypatch, encode_cid(family.last), "--all", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["verdict"], len(told["rounds"])) == ("YES", 3)
    assert {check["verdict"] for check in told["rounds"][2]["checks"]} == {"YES"}
    assert "auditing round 3 of task 1" in done.stderr


def test_the_command_shows_a_refuted_round_in_full(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = encode_cid(family.last)
    done = run(family, monkeypatch, cid, blob=lambda name, data: data[:-1] + b"\0")
    assert done.exit_code == 1
    assert done.stdout.startswith("round 1 of task 2\n")
    assert "digest mismatch" in done.stdout
    assert run(family, monkeypatch, encode_cid(NEVER_NAMED)).exit_code == 2


# -- a quorum that lies ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parent": 5}, "its parent came after it"),
        ({"parent": 2**255}, "its parent came after it"),
        ({"model": FOREIGN}, "is of another model"),
        ({"number": 3}, "is of another model"),
    ],
)
def test_lineage_that_the_contract_cannot_store_is_refuted(
    family: Family, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    """Followed, it might never end."""
    genuine = Storage.read_publication
    monkeypatch.setattr(
        Storage, "read_publication", lambda *asked: replace(genuine(*asked), **changes)
    )
    report = look(family, family.last)
    assert report.verdict is Verdict.REFUTED
    assert words in list_details(report, "registry")[-1]
