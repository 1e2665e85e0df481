"""`client doctor`: everything that must be right before training, each with what to do about it."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Address

from .amounts import format_coins
from .contracts import Tasks
from .errors import NodeRefused, NodeUnreachable
from .keys import format_address, read_key_address
from .records import Admission, TaskInfo
from .rpc import Rpc, as_int
from .sending import get_balance

MAX_SKEW_SECONDS: Final = 120
MIN_FREE_BYTES: Final = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `is_good` None: could not tell."""

    name: str
    is_good: bool | None
    detail: str


def examine(urls: list[str], key: Path, state: Path, task: int | None = None) -> list[Finding]:
    """Check nodes, clock, key, money, disk and, if one is named, the task."""
    rpc = Rpc(urls)
    findings = [*examine_nodes(rpc), *examine_state(state)]
    try:
        address = read_key_address(key)
    except SteelyardError as error:
        return [*findings, Finding("key", False, error.message)]
    findings.append(Finding("key", True, f"{format_address(address)} in {key}"))
    if not any(finding.is_good for finding in findings if finding.name.startswith("node")):
        return [*findings, Finding("account", None, "no node to ask")]
    try:
        findings.append(examine_balance(rpc, address))
        if task is not None:
            findings.append(examine_task(rpc, address, task))
    except SteelyardError as error:
        findings.append(Finding("account", None, error.message))
    return findings


def examine_nodes(rpc: Rpc) -> list[Finding]:
    """Check that every node answers, is on one chain, and is at a recent height."""
    findings: list[Finding] = []
    chains = rpc.call_each("eth_chainId")
    heads = rpc.call_each("eth_getBlockByNumber", "latest", False)
    for url in rpc.urls:
        chain, head = chains[url], heads[url]
        if not isinstance(head, SteelyardError | dict):
            head = NodeRefused("rpc_answer", "it has no newest block")
        if isinstance(chain, SteelyardError) or isinstance(head, SteelyardError):
            error = chain if isinstance(chain, SteelyardError) else head
            verdict = None if isinstance(error, NodeUnreachable) else False
            findings.append(Finding(f"node {url}", verdict, error.message))
            continue
        try:
            height, stamp = as_int(head.get("number")), as_int(head.get("timestamp"))
            detail = f"chain {as_int(chain)}, height {height}"
        except NodeRefused as error:
            findings.append(Finding(f"node {url}", False, error.message))
            continue
        findings.append(Finding(f"node {url}", True, detail))
        findings.append(examine_clock(url, stamp))
    known = {chain for chain in chains.values() if isinstance(chain, str)}
    if len(known) > 1:
        findings.append(Finding("chain", False, "the nodes are on different chains"))
    return findings


def examine_clock(url: str, stamp: int) -> Finding:
    """Compare this machine's clock with a head's timestamp; an idle chain's head is old."""
    ahead = stamp - time.time()
    if ahead > MAX_SKEW_SECONDS:
        return Finding(
            "clock", False, f"{url} is {ahead:.0f} s ahead of this machine; set the time"
        )
    if -ahead > MAX_SKEW_SECONDS:
        return Finding("clock", None, f"the newest block of {url} is {-ahead:.0f} s old")
    return Finding("clock", True, f"within {abs(ahead):.0f} s of the newest block")


def examine_state(state: Path) -> list[Finding]:
    """Check that the journal's directory can be written and has room."""
    parent = next(path for path in (state, *state.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        return [Finding("state", False, f"{parent} cannot be written; choose another --state")]
    free = shutil.disk_usage(parent).free
    is_enough = free >= MIN_FREE_BYTES
    detail = f"{state}, {free // 2**20} MiB free" + ("" if is_enough else "; make room")
    return [Finding("state", is_enough, detail)]


def examine_balance(rpc: Rpc, address: Address) -> Finding:
    """Check that the account can pay for transactions."""
    balance = get_balance(rpc, address)
    hint = "" if balance else "; ask for coins: transactions and stakes cost some"
    return Finding("balance", balance > 0, f"{format_coins(balance)} coins{hint}")


def tell_how_to_be_invited(tasks: Tasks, info: TaskInfo, address: Address) -> str:
    """Return what an account that is not invited can do, "" if nothing."""
    if info.parameters.admission != Admission.APPLICANTS:
        return ""
    if tasks.has_applied(info.number, address):
        return "; it has applied: the organisation decides"
    return f"; ask to be let in: `steelyard client apply {info.number}`"


def examine_task(rpc: Rpc, address: Address, task: int) -> Finding:
    """Check that the account is in the task or may join it."""
    tasks = Tasks(rpc)
    info = tasks.get_task(task)
    if tasks.get_participant(task, address).position:
        return Finding("task", True, f"{info.name!r}: joined")
    if info.is_over:
        return Finding("task", False, f"{info.name!r} is {info.state.name.lower()}")
    if not tasks.is_invited(task, address):
        hint = tell_how_to_be_invited(tasks, info, address)
        return Finding("task", False, f"{info.name!r} does not invite this account{hint}")
    return Finding("task", True, f"{info.name!r}: may be joined")
