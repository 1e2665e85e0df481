"""Was a validator slashed rightly? The evidence in a report to Staking, recomputed.

    transaction hash -> its block: header, body, certificate -> the transaction is final
    its arguments -> two statements, who signed each, the sums of their signatures
    validators of that epoch, followed from genesis -> the signers' keys -> both were signed
    the two statements -> nobody may sign both -> the receipt slashes exactly who did

The node that is asked can withhold; it cannot make an honest validator look guilty.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Never

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_hash.auto import keccak

from steelyard.chain.block import Block
from steelyard.chain.consensus.votes import Offence, Statement
from steelyard.chain.errors import SteelyardError
from steelyard.chain.evidence import (
    OFFENCE_CODES,
    SignedStatement,
    check_conflict,
)
from steelyard.chain.following import Checkpoint
from steelyard.chain.genesis import Genesis
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.receipts import Receipt, compute_receipts_root
from steelyard.chain.segments import check_body
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import Address, Hash

from .finality import Follower, can_check_certificates, fetch_block
from .finalized import OTHER_CHAIN, check_genesis, decode_receipts
from .rpc import Rpc, as_hex, as_int
from .verdicts import Report, Stop, Verdict

ARGUMENTS: Final = ("bytes", "address[]", "bytes", "bytes", "address[]", "bytes")
REPORT: Final = keccak(f"report({','.join(ARGUMENTS)})".encode())[:4]
SLASHED: Final = Hash(keccak(b"Slashed(address,uint256,uint256,uint256,uint256)"))
"""Topic of Slashed(account indexed, epoch, view, offence, amount)."""
OFFENCES: Final = {code: offence for offence, code in OFFENCE_CODES.items()}


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody says was signed: an encoded statement, by these accounts, with this sum."""

    statement: bytes
    signers: tuple[Address, ...]
    signature: bytes


def audit_evidence(
    rpc: Rpc,
    transaction_hash: Hash,
    *,
    genesis: bytes | None = None,
    checkpoint: Checkpoint | None = None,
) -> Report:
    """Check a report of misbehaviour: is it final, does it convict, and whom did it cost what?

    `genesis` and `checkpoint` are what the auditor trusts, as in `audit_round`.
    """
    report = Report(f"evidence in {as_hex(transaction_hash)}")
    try:
        document = check_genesis(rpc, report, genesis)
        if genesis is None and checkpoint is None:
            report.condition = OTHER_CHAIN
        if not can_check_certificates():
            report.add("finality", Verdict.UNKNOWN, "pip install 'steelyard[audit]' for signatures")
            return report
        audit = _EvidenceAudit(rpc, report, document, Follower(rpc, document, checkpoint))
        block, place = audit.find_transaction(transaction_hash)
        claims = audit.read_claims(block.transactions[place])
        statement, offence, guilty = audit.convict(claims)
        audit.check_penalties(block, place, statement, offence, guilty)
    except Stop:
        pass
    except SteelyardError as error:
        report.add("node", Verdict.UNKNOWN, f"{error.code}: {error.message}")
    return report


class _EvidenceAudit:
    """One audit in progress; every method adds links to the report."""

    def __init__(self, rpc: Rpc, report: Report, genesis: Genesis, follower: Follower) -> None:
        self._rpc, self._report = rpc, report
        self._genesis, self._follower = genesis, follower

    def find_transaction(self, transaction_hash: Hash) -> tuple[Block, int]:
        """Return the final block that holds the transaction, and its place there."""
        answer = self._rpc.call("eth_getTransactionByHash", as_hex(transaction_hash))
        if not isinstance(answer, dict) or answer.get("blockNumber") is None:
            self._report.add("finality", Verdict.UNKNOWN, "the node knows no such transaction")
            raise Stop
        block = fetch_block(self._rpc, as_int(answer["blockNumber"]))
        check_body(block)
        hashes = [Hash(keccak(raw)) for raw in block.transactions]
        if transaction_hash not in hashes:
            self._refute("finality", f"block {block.height} does not hold the transaction")
        verdict, detail = self._follower.verify(block)
        self._report.add("finality", verdict, f"block {block.height}: {detail}")
        if verdict is Verdict.REFUTED:
            raise Stop
        return block, hashes.index(transaction_hash)

    def read_claims(self, raw: bytes) -> tuple[Claim, Claim]:
        """Return the two claims in the arguments of a report."""
        transaction = decode_transaction(raw)
        if transaction.to != STAKING_ADDRESS or transaction.data[:4] != REPORT:
            self._refute("report", "the transaction reports nothing to Staking")
        try:
            found = decode(ARGUMENTS, transaction.data[4:])
        except (DecodingError, OverflowError) as error:
            self._refute("report", f"its arguments do not decode: {error}")
        first, second = (
            Claim(found[at], tuple(map(_read_address, found[at + 1])), found[at + 2])
            for at in (0, 3)
        )
        self._report.add(
            "report",
            Verdict.YES,
            f"by {as_hex(transaction.sender)}: {len(first.signers)} and {len(second.signers)} "
            "signers",
        )
        return first, second

    def convict(
        self, claims: tuple[Claim, Claim]
    ) -> tuple[Statement, Offence, tuple[Address, ...]]:
        """Return what was said, why nobody may say both, and who said both."""
        keys = self._find_keys(claims[0].signers + claims[1].signers)
        first, second = (
            SignedStatement(
                claim.statement, tuple(keys[one] for one in claim.signers), claim.signature
            )
            for claim in claims
        )
        try:
            code, statement = check_conflict(first, second, self._genesis.domain)
        except SteelyardError as error:
            self._refute("evidence", f"{error.code}: {error.message}")
        guilty = tuple(one for one in claims[1].signers if one in claims[0].signers)
        if not guilty:
            self._refute("evidence", "nobody signed both statements")
        offence = OFFENCES[code]
        self._report.add(
            "evidence",
            Verdict.YES,
            f"{', '.join(map(as_hex, guilty))} signed both: {offence.replace('_', ' ')} in view "
            f"{statement.view} of epoch {statement.epoch}",
        )
        return statement, offence, guilty

    def _find_keys(self, accounts: Iterable[Address]) -> dict[Address, bytes]:
        """Return the accounts' keys. An account has one for ever: any set that knows it will do."""
        sets = self._follower.get_sets()
        keys = {one.address: one.bls_key for known in sets for one in known.members}
        unknown = [one for one in accounts if one not in keys]
        if unknown:
            self._report.add(
                "evidence",
                Verdict.UNKNOWN,
                f"{as_hex(unknown[0])} was in no validator set since the start of the evidence",
            )
            raise Stop
        return {account: keys[account] for account in accounts}

    def check_penalties(
        self,
        block: Block,
        place: int,
        statement: Statement,
        offence: Offence,
        guilty: tuple[Address, ...],
    ) -> None:
        """Compare what the receipt slashed with who is guilty."""
        receipts = decode_receipts(
            self._rpc.call("eth_getBlockReceipts", as_hex(int(block.height)))
        )
        if compute_receipts_root(receipts) != block.header.receipts_root:
            self._refute("penalty", "the receipts do not hash to the header's root")
        if len(receipts) != len(block.transactions):  # of a block that is not known to be final
            self._refute("penalty", f"{len(receipts)} receipts of {len(block.transactions)}")
        receipt = receipts[place]
        if receipt.status != 1:
            self._refute("penalty", "the contract refused the report: it cost nobody anything")
        slashed = read_slashed(receipt)
        said = (statement.epoch, statement.view, OFFENCE_CODES[offence])
        for account, (*claimed, _) in slashed.items():
            if account not in guilty or tuple(claimed) != said:
                self._refute("penalty", f"{as_hex(account)} was slashed for something else")
        if not slashed:
            self._refute("penalty", "nobody was slashed")
        costs = [
            f"{as_hex(account)} lost {amount} wei" for account, (*_, amount) in slashed.items()
        ]
        self._report.add("penalty", Verdict.YES, ", ".join(costs))

    def _refute(self, name: str, detail: str) -> Never:
        self._report.add(name, Verdict.REFUTED, detail)
        raise Stop


def read_slashed(receipt: Receipt) -> dict[Address, tuple[int, int, int, int]]:
    """Return epoch, view, offence and wei of each account that a receipt slashed."""
    found = {}
    for log in receipt.logs:
        if log.address == STAKING_ADDRESS and log.topics[:1] == (SLASHED,) and len(log.topics) == 2:
            words = [int.from_bytes(log.data[at : at + 32], "big") for at in range(0, 128, 32)]
            epoch, view, offence, amount = words
            found[Address(log.topics[1][12:])] = (epoch, view, offence, amount)
    return found


def _read_address(text: str) -> Address:
    return Address(bytes.fromhex(text[2:]))
