"""Evidence audited: a report that convicts, and every way in which one may not."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from eth_abi import encode

from steelyard.chain import bls
from steelyard.chain.block import decode_block, encode_block
from steelyard.chain.consensus.certificates import encode_certificate
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement, compute_signing_root
from steelyard.chain.epochs import encode_epoch_set
from steelyard.chain.evidence import encode_statement
from steelyard.chain.genesis import Genesis, encode_genesis
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.receipts import Log, Receipt
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.trie import EMPTY_ROOT
from steelyard.chain.types import Address, Epoch, Hash, View
from steelyard.client.commands.audits import parse_hash, parse_upgrades
from steelyard.client.errors import ClientError
from steelyard.client.evidence import (
    ARGUMENTS,
    REPORT,
    SLASHED,
    audit_evidence,
    read_slashed,
)
from steelyard.client.verdicts import Report, Verdict
from tests.chain.evm_kit import Chain, Draft, make_genesis, make_validator, sign
from tests.chain.following_kit import SECRETS, certify

from .test_finality import Lie, Served

FIRST, SECOND = Hash(b"\x0a" * 32), Hash(b"\x0b" * 32)
NUMBERS = (0, 1, 2, 3)
CHEAT = 2
"""Number of the validator that signs two things."""


@cache
def get_genesis() -> Genesis:
    validators = tuple(
        replace(make_validator(number), stake=(number + 5) * 10**20) for number in NUMBERS
    )
    return make_genesis(validators=validators, epoch_blocks=2)


def say(kind: Kind, block_hash: Hash, view: int = 5) -> Statement:
    return Statement(Epoch(0), View(view), kind, block_hash)


def claim(statement: Statement, *numbers: int, signers: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """Return a claim about what these validators signed; `signers` really did, if others."""
    root = compute_signing_root(statement, get_genesis().domain)
    signatures = [bls.sign(SECRETS[number], root) for number in signers or numbers]
    accounts = ["0x" + make_validator(number).address.hex() for number in numbers]
    return encode_statement(statement), accounts, bls.aggregate_signatures(signatures)


def write_report(first: tuple[Any, ...], second: tuple[Any, ...]) -> bytes:
    return REPORT + encode(ARGUMENTS, (*first, *second))


CLAIMS = (claim(say(Kind.NOTARIZE, FIRST), CHEAT), claim(say(Kind.NOTARIZE, SECOND), CHEAT))


class Node(Served):
    """A node whose third block holds one transaction to Staking, or wherever it goes."""

    def __init__(self, data: bytes, to: bytes = STAKING_ADDRESS, gas: int = 10_000_000) -> None:
        chain, files = Chain(get_genesis()), {"/chain/genesis": encode_genesis(get_genesis())}
        self.raw = sign(Draft(to=to, data=data, gas=gas))
        for height in (1, 2, 3):
            files[f"/chain/validators/{chain.current.epoch}"] = encode_epoch_set(chain.current)
            built = chain.build(*[self.raw] if height == 3 else [])
            assert not built.outcome.refused
            numbers = tuple(
                next(n for n in NUMBERS if make_validator(n).address == member.address)
                for member in chain.current.members
            )
            signed = certify(
                built.block.hash,
                range(4),
                current=chain.current,
                numbers=numbers,
                domain=chain.genesis.domain,
            )
            files[f"/chain/blocks/{height}"] = encode_block(built.block)
            files[f"/chain/certificates/{height}"] = encode_certificate(signed)
            chain.import_block(built)
        files[f"/chain/validators/{chain.current.epoch}"] = encode_epoch_set(chain.current)
        super().__init__(files)
        self.receipts = [encode_receipt(one) for one in built.outcome.receipts]
        self.height: int | None = 3

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "eth_getBlockReceipts":
            return self.receipts
        return None if self.height is None else {"blockNumber": hex(self.height)}

    def lie(self, path: str, lie: Lie | None) -> None:
        self._lies[path] = lie


def encode_receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "type": hex(receipt.type),
        "status": hex(receipt.status),
        "cumulativeGasUsed": hex(receipt.cumulative_gas_used),
        "gasUsed": hex(receipt.gas_used),
        "effectiveGasPrice": hex(receipt.effective_gas_price),
        "logs": [
            {
                "address": "0x" + log.address.hex(),
                "topics": ["0x" + topic.hex() for topic in log.topics],
                "data": "0x" + log.data.hex(),
            }
            for log in receipt.logs
        ],
    }


def audit(node: Node) -> Report:
    transaction_hash = decode_transaction(node.raw).hash
    return audit_evidence(node, transaction_hash, genesis=encode_genesis(get_genesis()))


def refute(node: Node, name: str) -> str:
    """Return the reason with which the evidence is refuted at this link."""
    report = audit(node)
    assert report.verdict is Verdict.REFUTED, report.checks
    assert report.checks[-1].name == name, report.checks
    return report.checks[-1].detail


def test_a_validator_that_signed_two_blocks_is_convicted() -> None:
    report = audit(Node(write_report(*CLAIMS)))
    assert report.verdict is Verdict.YES, report.checks
    details = {check.name: check.detail for check in report.checks}
    cheat = "0x" + make_validator(CHEAT).address.hex()
    assert details["evidence"].startswith(f"{cheat} signed both: two notarizations in view 5")
    assert details["penalty"] == f"{cheat} lost {7 * 10**19} wei"


def test_conflicting_certificates_convict_who_signed_both() -> None:
    first = claim(say(Kind.FINALIZE, FIRST), 0, 1, 2)
    second = claim(say(Kind.NULLIFY, NO_HASH), 1, 2, 3)
    report = audit(Node(write_report(first, second)))
    assert report.verdict is Verdict.YES, report.checks
    (penalty,) = [check.detail for check in report.checks if check.name == "penalty"]
    for number, is_guilty in ((0, False), (1, True), (2, True), (3, False)):
        assert (make_validator(number).address.hex() in penalty) == is_guilty


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (claim(say(Kind.NOTARIZE, FIRST), CHEAT), CLAIMS[0], "evidence_conflict"),
        (CLAIMS[0], claim(say(Kind.NOTARIZE, SECOND, view=6), CHEAT), "evidence_conflict"),
        (CLAIMS[0], claim(say(Kind.NULLIFY, NO_HASH), CHEAT), "evidence_conflict"),
        (CLAIMS[0], claim(say(Kind.NOTARIZE, SECOND), CHEAT, signers=(3,)), "evidence_signature"),
        (CLAIMS[0], claim(say(Kind.NOTARIZE, SECOND), 0), "nobody signed both"),
        ((b"\xc0", *CLAIMS[0][1:]), CLAIMS[1], "vote_malformed"),
    ],
)
def test_evidence_that_convicts_nobody_is_refuted(
    first: tuple[Any, ...], second: tuple[Any, ...], reason: str
) -> None:
    assert reason in refute(Node(write_report(first, second)), "evidence")


def test_a_signer_whom_no_epoch_knows_is_not_judged() -> None:
    stranger = (CLAIMS[0][0], ["0x" + "77" * 20], CLAIMS[0][2])
    report = audit(Node(write_report(stranger, CLAIMS[1])))
    assert report.verdict is Verdict.UNKNOWN
    assert "in no validator set" in report.checks[-1].detail


def test_a_report_that_failed_cost_nobody_anything() -> None:
    node = Node(write_report(*CLAIMS), gas=250_000)
    assert "refused the report" in refute(node, "penalty")
    node.receipts[0] = {**node.receipts[0], "status": "0x1"}
    assert "receipts do not hash" in refute(node, "penalty")


def test_receipts_that_cannot_be_encoded_prove_nothing() -> None:
    node = Node(write_report(*CLAIMS))
    node.receipts[0] = {**node.receipts[0], "type": "0x100"}
    assert audit(node).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("data", "to"),
    [
        (write_report(*CLAIMS), b"\x99" * 20),
        (b"", STAKING_ADDRESS),
        (REPORT, STAKING_ADDRESS),
        (REPORT + b"\xff" * 400, STAKING_ADDRESS),
    ],
)
def test_another_transaction_is_no_evidence(data: bytes, to: bytes) -> None:
    refute(Node(data, to), "report")


def test_a_transaction_that_is_not_final_is_no_evidence() -> None:
    node = Node(write_report(*CLAIMS))
    node.height = None
    assert audit(node).verdict is Verdict.UNKNOWN
    node.height = 2
    assert "does not hold the transaction" in refute(node, "finality")
    node.height = 3
    unsigned = certify(decode_block(node._files["/chain/blocks/3"]).hash, (0, 1))
    node.lie("/chain/certificates/3", lambda data: encode_certificate(unsigned))
    refute(node, "finality")


def test_another_body_under_the_blocks_header_is_no_evidence() -> None:
    node = Node(write_report(*CLAIMS))

    def smuggle(data: bytes) -> bytes:
        block = decode_block(data)
        return encode_block(replace(block, transactions=(*block.transactions, node.raw)))

    node.lie("/chain/blocks/3", smuggle)
    report = audit(node)
    assert report.verdict is not Verdict.YES
    assert "segment_body" in report.checks[-1].detail


def test_a_block_that_is_not_final_may_have_no_receipts_at_all() -> None:
    node = Node(write_report(*CLAIMS))

    def forget(data: bytes) -> bytes:
        block = decode_block(data)
        return encode_block(replace(block, header=replace(block.header, receipts_root=EMPTY_ROOT)))

    node.lie("/chain/certificates/3", None)
    node.lie("/chain/blocks/3", forget)
    node.receipts = []
    assert refute(node, "penalty") == "0 receipts of 1"


def test_a_log_that_the_contract_cannot_make_slashes_nobody() -> None:
    account = Hash(bytes(12) + b"\x77" * 20)
    odd = [
        Log(Address(STAKING_ADDRESS), topics, b"") for topics in ((SLASHED,), (), (account,) * 2)
    ]
    good = Log(Address(STAKING_ADDRESS), (SLASHED, account), bytes(127) + b"\x09")
    receipt = Receipt(2, 1, 0, 0, 0, (*odd, good), None)
    assert read_slashed(receipt) == {Address(b"\x77" * 20): (0, 0, 0, 9)}


def test_a_node_of_another_chain_is_refuted() -> None:
    node = Node(write_report(*CLAIMS))
    other = encode_genesis(replace(get_genesis(), name="other"))
    report = audit_evidence(node, decode_transaction(node.raw).hash, genesis=other)
    assert report.verdict is Verdict.REFUTED


@pytest.mark.parametrize("text", ["", "0x", "0x" + "1" * 63, "0x" + "g" * 64, "1" * 65])
def test_what_is_no_hash_is_not_asked_for(text: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_hash(text)
    assert caught.value.code == "hash_malformed"


def test_a_hash_may_have_its_prefix_or_not() -> None:
    assert parse_hash("0x" + "aB" * 32) == parse_hash("ab" * 32) == b"\xab" * 32


def test_rule_changes_are_named_on_the_command_line() -> None:
    assert parse_upgrades(["one=7", "two=9"]) == {"one": 7, "two": 9}
    for text in ("one", "=7", "one=", "one=-7", "one=٣", "one=" + "9" * 19):
        with pytest.raises(ClientError) as caught:
            parse_upgrades([text])
        assert caught.value.code == "upgrade_malformed"
