"""The auditor: recompute a round, or re-execute the chain, from a node that nobody trusts.

`audit_round` follows one chain of evidence and says at each link YES, REFUTED or UNKNOWN:

    genesis, or a checkpoint -> validator sets -> certificate -> header
    header -> receipts root -> the record (event)
    header -> state root -> storage: the task's terms, who submitted what with which weight
    record -> blobs by name -> updates verified -> aggregate recomputed -> same model, same shares
    storage before and after the block -> everybody was credited what the shares say

The recomputation is `chain/reference.py`: plain Python integers, no code shared with the kernels.
A node can withhold (UNKNOWN); it cannot make a wrong round look right.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from steelyard.chain.block import Block, decode_block
from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import Checkpoint
from steelyard.chain.genesis import Genesis, build_genesis, parse_genesis
from steelyard.chain.model import decode_model
from steelyard.chain.receipts import Log as ChainLog
from steelyard.chain.receipts import Receipt as ChainReceipt
from steelyard.chain.receipts import compute_receipts_root
from steelyard.chain.rules import Aggregate, Rule, RuleKind
from steelyard.chain.trie import InvalidProof, MissingState
from steelyard.chain.types import Address, BlobName, Hash, Round, TaskId
from steelyard.chain.update import Binding

from .contracts import Event, RoundState, Tasks
from .errors import ClientError, NodeRefused, NodeUnreachable
from .finality import MAX_BLOCK_ANSWER_BYTES, can_check_certificates, verify_certificate
from .proven import ProvenRound, read_money, read_round
from .reckoning import compute_credits, compute_weight
from .rpc import Json, Rpc, as_bytes, as_hex, as_int
from .verdicts import Report, Stop, Verdict

MAX_GENESIS_BYTES: Final = 16 * 2**20
MAX_TYPE: Final = 0x7F
"""EIP-2718."""

Fetch = Callable[[BlobName], bytes]


def audit_round(
    rpc: Rpc,
    task: int,
    round_number: int,
    *,
    genesis: bytes | None = None,
    checkpoint: Checkpoint | None = None,
    fetch: Fetch | None = None,
) -> Report:
    """Recompute one round of a task and compare everything with the chain's record.

    `genesis`: the document that the auditor trusts; without it the node's own is used, and the
    report says so. `checkpoint`: a block that the auditor trusts, to follow the validators from
    there. `fetch`: where blobs come from instead of the node; names are checked here.
    """
    report = Report(f"round {round_number} of task {task}")
    audit = _RoundAudit(rpc, task, round_number, report)
    try:
        event = audit.find_record()
        block, chain_id, logs = audit.check_finality(event, genesis, checkpoint)
        terms = audit.check_storage(event, block, logs)
        audit.recompute(event, terms, chain_id, fetch or audit.fetch)
        audit.check_payments(event, terms, block, logs)
    except Stop:
        pass
    except NodeUnreachable as error:
        report.add("node", Verdict.UNKNOWN, error.message)
    except SteelyardError as error:
        report.add("node", Verdict.UNKNOWN, f"{error.code}: {error.message}")
    return report


class _RoundAudit:
    """One audit in progress; every method adds links to the report."""

    def __init__(self, rpc: Rpc, task: int, round_number: int, report: Report) -> None:
        self._rpc, self._task, self._round = rpc, task, round_number
        self._tasks = Tasks(rpc)
        self._report = report

    # -- the record --------------------------------------------------------------------------------
    def find_record(self) -> Event:
        """Find the Aggregated event of the round."""
        info = self._tasks.get_task(self._task)
        state = self._tasks.get_round(self._task, self._round)
        if state.state is not RoundState.AGGREGATED:
            self._report.add(
                "record",
                Verdict.UNKNOWN,
                f"round {self._round} is {state.state.name.lower()}: it has made no model"
                f" (the task is in round {info.round})",
            )
            raise Stop
        events = self._tasks.get_events(self._task, ["Aggregated"], round_number=self._round)
        if len(events) != 1:
            self._report.add(
                "record", Verdict.REFUTED, f"the node shows {len(events)} records of one round"
            )
            raise Stop
        event = events[0]
        same = event.values["model"] == state.model
        self._report.add(
            "record",
            Verdict.YES if same else Verdict.REFUTED,
            f"height {event.height}, {len(event.values['updates'])} updates, "
            f"model {encode_cid(event.values['model'])}"
            + ("" if same else f", but the state says {encode_cid(state.model)}"),
        )
        return event

    # -- finality ----------------------------------------------------------------------------------
    def check_finality(
        self, event: Event, trusted: bytes | None, checkpoint: Checkpoint | None
    ) -> tuple[Block, int, list[ChainLog]]:
        """Follow certificate, header and receipts root down to the record.

        Returns the block, the chain id of its genesis and the proven logs of Tasks in it.
        """
        block = self._fetch_block(event.height)
        chain_id = self._check_certificate(block, trusted, checkpoint)
        return block, chain_id, self._check_receipts(block, event)

    def _fetch_block(self, height: int) -> Block:
        data = self._rpc.get_bytes(f"/chain/blocks/{height}", MAX_BLOCK_ANSWER_BYTES)
        try:
            block = decode_block(data)
        except SteelyardError as error:
            self._report.add("header", Verdict.REFUTED, f"the block is malformed: {error.message}")
            raise Stop from None
        if block.height != height:
            self._report.add("header", Verdict.REFUTED, f"the node sent block {block.height}")
            raise Stop
        return block

    def _check_certificate(
        self, block: Block, trusted: bytes | None, checkpoint: Checkpoint | None
    ) -> int:
        genesis = check_genesis(self._rpc, self._report, trusted)
        if can_check_certificates():
            verdict, detail = verify_certificate(self._rpc, block, genesis, checkpoint)
        else:
            verdict = Verdict.UNKNOWN
            detail = "not checked: pip install 'steelyard[audit]' for BLS signatures"
        self._report.add("finality", verdict, detail)
        if verdict is Verdict.REFUTED:
            raise Stop
        return genesis.chain_id

    def _check_receipts(self, block: Block, event: Event) -> list[ChainLog]:
        answer = self._rpc.call("eth_getBlockReceipts", hex(event.height))
        receipts = decode_receipts(answer)
        if compute_receipts_root(receipts) != block.header.receipts_root:
            self._report.add(
                "receipts", Verdict.REFUTED, "the receipts do not hash to the header's root"
            )
            raise Stop
        topics = [
            self._tasks.contract.get_topic("Aggregated"),
            self._task.to_bytes(32, "big"),
            self._round.to_bytes(32, "big"),
        ]
        logs = [
            log
            for receipt in receipts
            for log in receipt.logs
            if log.address == self._tasks.contract.address
        ]
        proven = [self._tasks.decode_chain_log(log) for log in logs if list(log.topics) == topics]
        if [found.values for found in proven] != [event.values]:
            self._report.add("receipts", Verdict.REFUTED, "the record is not in this block")
            raise Stop
        self._report.add(
            "receipts", Verdict.YES, f"{len(receipts)} receipts, root in the header, record inside"
        )
        return logs

    # -- storage -----------------------------------------------------------------------------------
    def check_storage(self, event: Event, block: Block, logs: Sequence[ChainLog]) -> ProvenRound:
        """Compare the record with what the contract stores: terms, submissions and weights."""
        values = event.values
        if len({len(values[name]) for name in ("clients", "updates", "raw_weights")}) != 1:
            self._report.add("storage", Verdict.REFUTED, "the record's lists differ in length")
            raise Stop
        try:
            found = read_round(self._rpc, block, self._task, self._round, values["clients"])
        except (InvalidProof, MissingState) as error:
            self._report.add("storage", Verdict.REFUTED, f"{error.code}: {error.message}")
            raise Stop from None
        leavers = self._find_leavers(logs)
        weights = [
            compute_weight(found.parameters.weighting, one, leavers.get(client, one.stake))
            for client, one in zip(values["clients"], found.submissions, strict=True)
        ]
        rule = (values["rule"]["kind"], values["rule"]["bound"])
        wrong = [
            name
            for name, is_same in {
                "state": found.is_aggregated,
                "rule": rule == found.parameters.rule,
                "base": values["base"] == found.base,
                "model": values["model"] == found.model,
                "saturated": values["saturated"] == found.saturated,
                "clients": len(set(values["clients"])) == len(values["clients"]) == found.revealed,
                "updates": list(values["updates"]) == [one.update for one in found.submissions],
                "raw weights": list(values["raw_weights"]) == weights,
            }.items()
            if not is_same
        ]
        if wrong:
            self._report.add(
                "storage", Verdict.REFUTED, f"the record has another {wrong[0]} than the contract"
            )
            raise Stop
        self._report.add(
            "storage", Verdict.YES, "terms, updates and weights are the contract's, proven"
        )
        return found

    def _find_leavers(self, logs: Sequence[ChainLog]) -> dict[Address, int]:
        """Return the stakes that left after the record, in its own block: no longer in storage."""
        left: dict[Address, int] = {}
        is_after = False
        for event in map(self._tasks.decode_chain_log, logs):
            if event.values.get("task") != self._task:
                continue
            is_after = is_after or (
                event.name == "Aggregated" and event.values["round"] == self._round
            )
            if is_after and event.name == "Left":
                left.setdefault(event.values["participant"], event.values["stake"])
        return left

    def check_payments(
        self, event: Event, terms: ProvenRound, block: Block, logs: Sequence[ChainLog]
    ) -> None:
        """Compare what the block credited to each client with what its events say it should."""
        clients = list(dict.fromkeys(event.values["clients"]))
        before = self._fetch_block(block.height - 1)
        if before.hash != block.header.parent_hash:
            self._report.add("payments", Verdict.REFUTED, "the node sent another parent block")
            raise Stop
        try:
            then = read_money(self._rpc, before, self._task, clients)
            now = read_money(self._rpc, block, self._task, clients)
        except (InvalidProof, MissingState) as error:
            self._report.add("payments", Verdict.REFUTED, f"{error.code}: {error.message}")
            raise Stop from None
        events = [self._tasks.decode_chain_log(log) for log in logs]
        mine = [one for one in events if one.values.get("task") == self._task]
        paid, credits = compute_credits(mine, terms.parameters)
        for client, old, new in zip(clients, then.claimable, now.claimable, strict=True):
            if new - old != credits.get(client, 0):
                self._report.add(
                    "payments",
                    Verdict.REFUTED,
                    f"{as_hex(client)} was credited {new - old} wei, not {credits.get(client, 0)}",
                )
                raise Stop
        if now.paid - then.paid != paid:
            self._report.add(
                "payments", Verdict.REFUTED, f"{now.paid - then.paid} wei were paid, not {paid}"
            )
            raise Stop
        self._report.add("payments", Verdict.YES, f"{paid} wei credited by the shares, proven")

    # -- recomputing -------------------------------------------------------------------------------
    def fetch(self, name: BlobName) -> bytes:
        """Fetch a blob from the node."""
        return self._rpc.get_blob(name)

    def recompute(self, event: Event, terms: ProvenRound, chain_id: int, fetch: Fetch) -> None:
        """Fetch the blobs, verify the updates, aggregate with plain integers, and compare."""
        from steelyard.chain import reference

        values = event.values
        base, *updates = self._fetch_all([values["base"], *values["updates"]], fetch)
        self._check_updates(terms.parameters.admission_norm2, chain_id, values, base, updates)
        kind, bound = terms.parameters.rule
        named = list(zip(values["updates"], updates, strict=True))
        try:
            rule = Rule(RuleKind(kind), bound)
            found = reference.aggregate(rule, values["base"], base, named, values["raw_weights"])
        except (SteelyardError, ValueError) as error:
            self._report.add("aggregate", Verdict.REFUTED, str(error))
            raise Stop from None
        self._compare(values, found)

    def _fetch_all(self, names: Sequence[BlobName], fetch: Fetch) -> list[bytes]:
        """Return the blobs, each checked against its name here, whoever served it."""
        blobs = []
        for place, name in enumerate(names):
            what = "base model" if place == 0 else f"update {place} of {len(names) - 1}"
            try:
                data = fetch(name)
            except NodeUnreachable as error:
                self._report.add("blobs", Verdict.UNKNOWN, f"{what}: {error.message}")
                raise Stop from None
            except ClientError as error:
                verdict = Verdict.REFUTED if error.code == "blob_mismatch" else Verdict.UNKNOWN
                self._report.add("blobs", verdict, f"{what}: {error.message}")
                raise Stop from None
            if compute_blob_name(data) != name:
                self._report.add(
                    "blobs",
                    Verdict.REFUTED,
                    f"{what}: digest mismatch, the bytes are "
                    f"{encode_cid(compute_blob_name(data))} and not {encode_cid(name)}",
                )
                raise Stop
            blobs.append(data)
        self._report.add(
            "blobs", Verdict.YES, f"base and {len(names) - 1} updates match their names"
        )
        return blobs

    def _check_updates(
        self, max_norm2: int, chain_id: int, values: Any, base: bytes, updates: Sequence[bytes]
    ) -> None:
        """Verify format, binding, ranges and norm of every update."""
        from steelyard.chain import reference

        try:
            model = decode_model(base)
        except SteelyardError as error:
            self._report.add("updates", Verdict.REFUTED, f"the base: {error}")
            raise Stop from None
        for client, data in zip(values["clients"], updates, strict=True):
            binding = Binding(
                chain_id, TaskId(self._task), Round(self._round), values["base"], client
            )
            try:
                reference.verify_update(data, model, binding, max_norm2)
            except SteelyardError as error:
                self._report.add(
                    "updates", Verdict.REFUTED, f"{as_hex(client)}: {error.code}: {error.message}"
                )
                raise Stop from None
        self._report.add(
            "updates", Verdict.YES, f"{len(updates)} are bound to their senders, in range and norm"
        )

    def _compare(self, values: Any, found: Aggregate) -> None:
        """Compare the recomputed aggregation with the record, and name what differs."""
        model = compute_blob_name(found.model)
        recorded = {
            "model": (encode_cid(values["model"]), encode_cid(model)),
            "shares": (list(values["shares"]), list(found.shares)),
            "scores": (list(values["scores"]), list(found.scores)),
            "flags": ([int(f) for f in values["flags"]], [int(f) for f in found.flags]),
            "saturated": (values["saturated"], found.saturated),
        }
        wrong = [name for name, (said, computed) in recorded.items() if said != computed]
        for name in wrong:
            said, computed = recorded[name]
            self._report.add(
                name,
                Verdict.REFUTED,
                f"the record says {said!s:.200}, recomputed {computed!s:.200}",
            )
        if wrong:
            raise Stop
        self._report.add(
            "aggregate",
            Verdict.YES,
            f"recomputed {encode_cid(model)}, shares, scores and flags agree",
        )


def audit_replay(
    rpc: Rpc,
    *,
    genesis: bytes | None = None,
    last_height: int | None = None,
    progress: Callable[[int], object] = int,
    checkpoint: Checkpoint | None = None,
    upgrades: Mapping[str, int] | None = None,
) -> Report:
    """Re-execute the chain from genesis and name the first height that differs.

    `checkpoint`: a block that must be part of it. `upgrades`: rule changes that the chain's
    operators scheduled after genesis, by name and height. Needs the EVM. Runs in a thread with a
    large stack. Raises: ClientError audit_extra, InvalidGenesis genesis_fork.
    """
    try:
        from .replaying import replay_chain
    except ModuleNotFoundError as error:
        raise ClientError(
            "audit_extra", f"replaying needs {error.name}: pip install 'steelyard[audit]'"
        ) from None

    return replay_chain(rpc, genesis, last_height, progress, checkpoint, upgrades)


def check_genesis(rpc: Rpc, report: Report, trusted: bytes | None) -> Genesis:
    """Return the genesis that the evidence starts from. A trusted one must be a document.

    Raises: Stop, with the reason in the report; ClientError.
    """
    mine = None if trusted is None else parse_genesis(trusted)
    try:
        served = parse_genesis(rpc.get_bytes("/chain/genesis", MAX_GENESIS_BYTES))
    except ClientError:
        raise
    except SteelyardError as error:
        report.add("genesis", Verdict.REFUTED, f"{error.code}: {error.message}")
        raise Stop from None
    if mine is not None and mine.hash != served.hash:
        report.add("genesis", Verdict.REFUTED, "the node serves another genesis document")
        raise Stop
    whose = "yours" if mine is not None else "as this node serves it; compare with --genesis FILE"
    report.add("genesis", Verdict.YES, f"{describe_genesis(served)} ({whose})")
    return served


def describe_genesis(genesis: Genesis) -> str:
    """The chain's name and both its hashes, under the labels of `steelyard node status`.

    Only who has the EVM can compute block 0, whose hash nodes show as genesis_hash.
    """
    text = f"{genesis.name}, genesis_document_hash {as_hex(genesis.hash)}"
    try:
        return f"{text}, genesis_hash {as_hex(build_genesis(genesis).block.hash)}"
    except ModuleNotFoundError:
        return text


def decode_receipts(answer: Json) -> list[ChainReceipt]:
    """Return a block's receipts in the consensus form. Raises NodeRefused `rpc_answer`."""
    try:
        return [
            ChainReceipt(
                type=read_type(value["type"]),
                status=as_int(value["status"]),
                cumulative_gas_used=as_int(value["cumulativeGasUsed"]),
                gas_used=as_int(value["gasUsed"]),
                effective_gas_price=as_int(value["effectiveGasPrice"]),
                logs=tuple(
                    ChainLog(
                        Address(as_bytes(log["address"], 20)),
                        tuple(Hash(as_bytes(topic, 32)) for topic in log["topics"]),
                        as_bytes(log["data"]),
                    )
                    for log in value["logs"]
                ),
                contract_address=None,
            )
            for value in answer
        ]
    except (KeyError, TypeError):
        raise NodeRefused("rpc_answer", "the node's receipts are malformed") from None


def read_type(value: Json) -> int:
    """Return a transaction's type, one byte in its encoding. Raises NodeRefused `rpc_answer`."""
    kind = as_int(value)
    if kind > MAX_TYPE:
        raise NodeRefused("rpc_answer", f"the node's receipt has type {kind}")
    return kind
