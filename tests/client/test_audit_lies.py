"""What a lying node may try besides false values: crash an auditor, or be believed too far."""

import httpx
import pytest
import typer

from steelyard.chain.trie import InvalidProof
from steelyard.chain.types import Address, Hash
from steelyard.client import finalized
from steelyard.client.abi import Event
from steelyard.client.audit import audit_round
from steelyard.client.commands import audits
from steelyard.client.commands.audits import describe_report, format_report
from steelyard.client.moments import Moment
from steelyard.client.proven import read_round
from steelyard.client.records import NO_BLOB
from steelyard.client.rpc import Rpc
from steelyard.client.verdicts import MAX_DETAIL, Report, Verdict

ALICE = Address(b"\1" * 20)


def open_rpc(body: bytes) -> Rpc:
    """A node that answers everything with these bytes."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    return Rpc("http://node.test", transport=transport, sleep=lambda seconds: None)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff", b"1" * 9_999, b""])
def test_an_answer_that_no_json_reader_survives_proves_nothing(body: bytes) -> None:
    """A crash would end with the exit code of a refutation."""
    report = audit_round(open_rpc(body), 1, 1)
    assert report.verdict is Verdict.UNKNOWN


def test_a_state_that_no_round_has_is_no_proof() -> None:
    with pytest.raises(InvalidProof, match="state 6"):
        read_round([6] + [0] * 16)


@pytest.mark.parametrize("seat", [128, 2**31, 2**256 - 1])
def test_a_seat_that_no_task_has_takes_no_memory(seat: int) -> None:
    moment = Moment(0, NO_BLOB, NO_BLOB, 0, 0, {}, {})
    values = {"participant": ALICE, "stake": 1, "sponsored": 0, "samples": 1, "active_from": 1,
              "seat": seat}  # fmt: skip
    with pytest.raises(InvalidProof, match="seat"):
        moment.pass_events([Event("Joined", values, 1, Hash(bytes(32)), 0)])
    assert moment.ready == 0


def test_a_nodes_words_stay_words() -> None:
    report = Report("round 1")
    report.add("node", Verdict.UNKNOWN, "gone\nYES\r\x1b[1A\u202e\ud800" + "x" * 10_000)
    detail = report.checks[0].detail
    assert len(detail) == MAX_DETAIL
    assert detail.isprintable()
    assert len(format_report(report).splitlines()) == 3


def test_a_verdict_says_whose_chain_it_is_about() -> None:
    """Anybody can found a chain with the same task on it, and serve it with right certificates."""
    report = Report("round 1", condition=finalized.OTHER_CHAIN)
    report.add("record", Verdict.YES, "height 7")
    last = format_report(report).splitlines()[-1]
    assert last.startswith("YES if the genesis document above is that of your chain")
    assert describe_report(report)["condition"] == finalized.OTHER_CHAIN
    assert format_report(Report("round 1")).splitlines()[-1] == "UNKNOWN"


def test_a_report_that_nobody_reads_to_its_end_is_no_refutation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`steelyard audit … | head -1`: typer would end with 1."""

    def tell(*told: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(audits, "tell", tell)
    report = Report("round 1")
    report.add("record", Verdict.YES, "height 7")
    with pytest.raises(typer.Exit) as caught:
        audits.finish(report, as_json=False)
    assert caught.value.exit_code == 2
