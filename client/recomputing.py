"""One aggregation again, from its record and blobs that anybody may have served.

Every blob is checked against its name here. The arithmetic is `chain/reference.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import decode_model
from steelyard.chain.rules import Aggregate, Rule, RuleKind
from steelyard.chain.types import Address, BlobName, Round, TaskId
from steelyard.chain.update import Binding

from .abi import Event
from .errors import ClientError, NodeUnreachable
from .finalized import MAX_SHOWN
from .records import NO_BLOB, Parameters, RoundInfo, SubmissionInfo
from .rpc import as_hex
from .verdicts import Report, Stop, Verdict

Fetch = Callable[[BlobName], bytes]


@dataclass(frozen=True, slots=True)
class Recomputation:
    """Recomputes rounds of a task for one report."""

    report: Report
    fetch: Fetch
    chain_id: int
    task: int

    def run(self, record: Event, parameters: Parameters, rounds: Mapping[int, RoundInfo]) -> None:
        """Fetch the blobs, verify the updates, aggregate with plain integers, and compare.

        `rounds`: those that the updates were made for, proven. Raises Stop.
        """
        from steelyard.chain import reference

        values = record.values
        base = self._fetch("base model", values["base"])
        velocity = None
        if values["velocity_before"].size:
            velocity = self._fetch("velocity", values["velocity_before"])
        count = len(values["updates"])
        updates = [
            self._fetch(f"update {place} of {count}", name)
            for place, name in enumerate(values["updates"], 1)
        ]
        self._say("blobs", f"base{', velocity' * bool(velocity)} and {count} updates match names")
        shown = list(zip(values["clients"], values["origins"], updates, strict=True))
        self._check_updates(parameters.admission_norm2, rounds, base, shown)
        kind, *numbers = parameters.rule.encode()
        named = list(zip(values["updates"], updates, strict=True))
        try:
            rule = Rule(RuleKind(kind), *numbers)
            found = reference.aggregate(rule, base, velocity, named, values["raw_weights"])
        except (SteelyardError, ValueError) as error:
            self.report.add("aggregate", Verdict.REFUTED, str(error))
            raise Stop from None
        self._compare(values, found)

    def check_shown(
        self,
        parameters: Parameters,
        rounds: Mapping[int, RoundInfo],
        base: BlobName,
        shown: Mapping[Address, SubmissionInfo],
    ) -> None:
        """Fetch and verify what was revealed in a round that made no model. Raises Stop."""
        if not shown:
            return
        model = self._fetch("base model", base)
        updates = [
            (client, one.origin, self._fetch(f"update {place} of {len(shown)}", one.update))
            for place, (client, one) in enumerate(shown.items(), 1)
        ]
        self._say("blobs", f"base and {len(updates)} updates match names")
        self._check_updates(parameters.admission_norm2, rounds, model, updates)

    def _fetch(self, what: str, name: BlobName) -> bytes:
        try:
            data = self.fetch(name)
        except NodeUnreachable as error:
            self.report.add("blobs", Verdict.UNKNOWN, f"{what}: {error.message}")
            raise Stop from None
        except ClientError as error:
            verdict = Verdict.REFUTED if error.code == "blob_mismatch" else Verdict.UNKNOWN
            self.report.add("blobs", verdict, f"{what}: {error.message}")
            raise Stop from None
        if compute_blob_name(data) != name:
            self.report.add(
                "blobs",
                Verdict.REFUTED,
                f"{what}: digest mismatch, the bytes are "
                f"{encode_cid(compute_blob_name(data))} and not {encode_cid(name)}",
            )
            raise Stop
        return data

    def _check_updates(
        self,
        max_norm2: int,
        rounds: Mapping[int, RoundInfo],
        base: bytes,
        shown: Sequence[tuple[Address, int, bytes]],
    ) -> None:
        """Verify format, binding, ranges and norm of every update.

        All rounds of a task have models of one layout, so the base's serves for late updates too.
        """
        from steelyard.chain import reference

        try:
            model = decode_model(base)
        except SteelyardError as error:
            self.report.add("updates", Verdict.REFUTED, f"the base: {error}")
            raise Stop from None
        for client, origin, data in shown:
            binding = Binding(
                self.chain_id, TaskId(self.task), Round(origin), rounds[origin].base, client
            )
            try:
                reference.verify_update(data, model, binding, max_norm2)
            except SteelyardError as error:
                self.report.add(
                    "updates", Verdict.REFUTED, f"{as_hex(client)}: {error.code}: {error.message}"
                )
                raise Stop from None
        self._say("updates", f"{len(shown)} are bound to their senders, in range and norm")

    def _compare(self, values: Mapping[str, Any], found: Aggregate) -> None:
        """Compare the recomputed aggregation with the record, and name what differs."""
        model = compute_blob_name(found.model)
        velocity = NO_BLOB if found.velocity is None else compute_blob_name(found.velocity)
        recorded = {
            "model": (encode_cid(values["model"]), encode_cid(model)),
            "velocity": (values["velocity"], velocity),
            "shares": (list(values["shares"]), list(found.shares)),
            "scores": (list(values["scores"]), list(found.scores)),
            "flags": ([int(f) for f in values["flags"]], [int(f) for f in found.flags]),
            "saturated": (values["saturated"], found.saturated),
        }
        wrong = [name for name, (said, computed) in recorded.items() if said != computed]
        for name in wrong:
            said, computed = recorded[name]
            self.report.add(
                name,
                Verdict.REFUTED,
                f"the record says {said!s:.{MAX_SHOWN}}, recomputed {computed!s:.{MAX_SHOWN}}",
            )
        if wrong:
            raise Stop
        self._say(
            "aggregate",
            f"recomputed {encode_cid(model)}{', velocity' * bool(velocity.size)}, shares, scores "
            "and flags agree",
        )

    def _say(self, link: str, detail: str) -> None:
        self.report.add(link, Verdict.YES, detail)
