"""The demo's auditors: one asks an honest node, two ask nodes that lie."""

import json

from steelyard.chain.cid import encode_cid

from ..events import get_events
from ..organisation import PublishedTask
from ..records import RoundState
from .liar import Tamper, flip_bit_of, forge_certificates, serve_liar
from .stage import Stage


def audit(stage: Stage, label: str, url: str, task: PublishedTask) -> str:
    """Let an auditor recompute the last round from a node it does not trust; return its verdict."""
    words = ["audit", "round", str(task.number), str(stage.options.rounds), "--node", url, "--json"]
    output = stage.processes.run(["-m", "steelyard", *words], codes=(0, 1, 2))
    document = json.loads(output.splitlines()[-1])
    verdict = str(document["verdict"])
    summary, _, detail = str(document["summary"]).partition(": ")
    stage.tell(f"{label:<11} {summary if detail else 'node untrusted; ' + summary}   {verdict}")
    if detail:
        stage.say(f"                  {detail}")
    return verdict


def audit_tampered(stage: Stage, task: PublishedTask) -> str:
    """Let the same auditor ask a node that changes one bit of one update."""
    organisation, last = task.organisation, stage.options.rounds
    assert organisation.rounds.get_round(task.number, last).state is RoundState.AGGREGATED
    (record,) = get_events(organisation.rpc, task.number, ["Aggregated"], round_number=last)
    victim = flip_bit_of(encode_cid(record.values["updates"][0]))
    return audit_through_liar(stage, "tampered", victim, task)


def audit_forged(stage: Stage, task: PublishedTask) -> str:
    """Let it ask a node whose certificates only two of the validators signed."""
    return audit_through_liar(stage, "forged", forge_certificates, task)


def audit_through_liar(stage: Stage, label: str, tamper: Tamper, task: PublishedTask) -> str:
    """Return the verdict of an auditor that asks a liar."""
    with serve_liar(stage.url, tamper) as url:
        return audit(stage, label, url, task)
