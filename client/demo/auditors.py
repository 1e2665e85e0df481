"""The demo's auditors: one asks an honest node, two ask nodes that lie. They work side by side."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from steelyard.chain.cid import encode_cid

from ..events import get_events
from ..organisation import PublishedTask
from ..records import RoundState
from .liar import flip_bit_of, forge_certificates, serve_liar
from .stage import Stage

LABELS = ("audit", "tampered", "forged")


def audit_all(stage: Stage, task: PublishedTask) -> list[str]:
    """Let an auditor of the last round ask a node, and others ones that lie; return the verdicts.

    The first liar changes one bit of one update; only two validators signed the second one's
    certificates.
    """
    victim = find_victim(stage, task)
    with ExitStack() as open_liars, ThreadPoolExecutor() as pool:
        liars = (serve_liar(stage.url, lie) for lie in (flip_bit_of(victim), forge_certificates))
        urls = [stage.url, *(open_liars.enter_context(liar) for liar in liars)]
        documents = pool.map(lambda url: audit(stage, url, task), urls)
        return [tell(stage, *pair) for pair in zip(LABELS, documents, strict=True)]


def find_victim(stage: Stage, task: PublishedTask) -> str:
    """Return the CID of an update that the last round's model was made of."""
    organisation, last = task.organisation, stage.options.rounds
    assert organisation.rounds.get_round(task.number, last).state is RoundState.AGGREGATED
    (record,) = get_events(organisation.rpc, task.number, ["Aggregated"], round_number=last)
    return encode_cid(record.values["updates"][0])


def audit(stage: Stage, url: str, task: PublishedTask) -> dict[str, Any]:
    """Let an auditor recompute the last round from a node it does not trust."""
    words = ["audit", "round", str(task.number), str(stage.options.rounds), "--node", url, "--json"]
    output = stage.processes.run(["-m", "steelyard", *words], codes=(0, 1, 2), must_speak=True)
    document: dict[str, Any] = json.loads(output.splitlines()[-1])
    return document


def tell(stage: Stage, label: str, document: dict[str, Any]) -> str:
    """Say what an auditor found, and return its verdict."""
    verdict = str(document["verdict"])
    summary, _, detail = str(document["summary"]).partition(": ")
    stage.tell(f"{label:<11} {summary if detail else 'node untrusted; ' + summary}   {verdict}")
    if detail:
        stage.say(f"                  {detail}")
    return verdict
