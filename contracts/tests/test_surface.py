"""The contract's surface: nothing changes a task but these calls, and every refusal is known."""

import json
import re
from pathlib import Path

import pytest
from eth_utils import keccak

CONTRACTS = Path(__file__).resolve().parents[1]
DOCS = CONTRACTS.parent / "docs"
PAGES = {
    "tasks": "tasks.md",
    "rounds": "tasks.md",
    "staking": "staking.md",
    "registry": "registry.md",
}
CONTRACT_NAMES = ("Registry", "Rounds", "Staking", "Tasks")
REASONS = {
    reason
    for path in CONTRACTS.glob("*.vy")
    for reason in re.findall(rf'"((?:{"|".join(PAGES)}): [^"]+)"', path.read_text())
}


def list_refusals(page):
    """Return the calls and reasons of a page's tables of errors, as (call, "contract: reason").

    A table's last heading holds the contract. Where a call is refused through another, both are.
    """
    found, prefix = set(), None
    for line in (DOCS / page).read_text().splitlines():
        cells = line.strip("|").split("|")
        first, last = cells[0].strip(), cells[-1]
        heading = re.search(r"`(\w+): …`", last)
        if heading and first == "Call":
            prefix = heading[1]
        elif not line.startswith("|"):
            prefix = None
        elif prefix:
            calls = re.findall(r"`(\w+)", first)
            reasons = re.findall(r"`([^`]+)`", last)
            found |= {(call, f"{prefix}: {reason}") for call in calls for reason in reasons}
    return found


REFUSALS = set().union(*(list_refusals(page) for page in sorted(set(PAGES.values()))))


def test_only_these_calls_change_anything(compiled):
    """No setter, no owner, no upgrade: the terms of a task are frozen when it is published."""
    changing = {method.name for method in compiled.Tasks.contract_type.mutable_methods}
    assert changing == {
        "publish",
        "fund",
        "invite",
        "uninvite",
        "sponsor",
        "unsponsor",
        "apply",
        "join",
        "add_stake",
        "start",
        "pause",
        "resume",
        "cancel",
        "abort",
        "claim",
        "leave",
        "release",
        "refund",
        "settle",
        "pay_closer",
    }
    changing = {method.name for method in compiled.Rounds.contract_type.mutable_methods}
    assert changing == {
        "register",
        "open",
        "drop",
        "stop",
        "commit",
        "reveal",
        "close",
        "report",
        "request_evaluation",
    }
    changing = {method.name for method in compiled.Staking.contract_type.mutable_methods}
    assert changing == {
        "deposit",
        "add_stake",
        "enter",
        "set_endpoint",
        "set_network_key",
        "set_fee_recipient",
        "check_in",
        "jail",
        "unjail",
        "request_exit",
        "withdraw",
        "report",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Tasks", {"publish", "fund", "sponsor", "join", "add_stake"}),
        ("Rounds", set()),
        ("Staking", {"deposit", "add_stake"}),
    ],
)
def test_only_these_calls_take_money(compiled, name, expected):
    methods = getattr(compiled, name).contract_type.mutable_methods
    assert {method.name for method in methods if method.is_payable} == expected


@pytest.mark.parametrize("name", ["Tasks", "Rounds", "Staking"])
def test_every_event_and_call_is_documented(compiled, name):
    page = (DOCS / PAGES[name.lower()]).read_text()
    contract = getattr(compiled, name).contract_type
    assert [event.name for event in contract.events if f"`{event.name}(" not in page] == []
    calls = [*contract.mutable_methods, *contract.view_methods]
    assert [call.name for call in calls if f"`{call.name}" not in page] == []


@pytest.mark.parametrize("name", ["Tasks", "Rounds", "Staking"])
def test_these_tests_run_the_code_that_genesis_deploys(compiled, name):
    artifact = json.loads((CONTRACTS.parent / "chain/artifacts" / f"{name}.json").read_text())
    contract = getattr(compiled, name).contract_type
    assert str(contract.deployment_bytecode.bytecode) == artifact["init_code"]


def test_every_reason_for_a_refusal_is_documented():
    pages = {prefix: (DOCS / page).read_text() for prefix, page in PAGES.items()}
    parts = [reason.split(": ", 1) for reason in sorted(REASONS)]
    assert [(prefix, text) for prefix, text in parts if f"`{text}`" not in pages[prefix]] == []
    assert {reason for _, reason in REFUSALS} <= REASONS


@pytest.mark.parametrize("name", CONTRACT_NAMES)
def test_every_entry_point_was_taken_and_refused(compiled, recorder, name):
    """Judges what all other tests have called: a positive and a negative twin of each call."""
    methods = getattr(compiled, name).contract_type.mutable_methods
    selectors = {method.name: keccak(text=method.selector)[:4] for method in methods}
    assert [each for each, selector in selectors.items() if not recorder.taken[selector]] == []
    assert [each for each, selector in selectors.items() if not recorder.refused[selector]] == []


def get_names(compiled):
    """Return the name of each selector that changes something."""
    return {
        keccak(text=method.selector)[:4]: method.name
        for name in CONTRACT_NAMES
        for method in getattr(compiled, name).contract_type.mutable_methods
    }


def test_every_entry_point_was_refused_for_all_its_documented_reasons(compiled, recorder):
    """And for no other; the constructor of Staking for what stands in its prose."""
    names = get_names(compiled)
    seen = {
        (names[selector], reason)
        for selector, reason in recorder.reasons
        if selector in names and reason in REASONS
    }
    assert sorted(REFUSALS - seen) == []
    assert sorted(seen - REFUSALS) == []


def test_every_entry_point_or_constructor_was_refused_for_every_reason_in_the_sources(recorder):
    assert sorted(REASONS - {reason for _, reason in recorder.reasons}) == []


@pytest.mark.parametrize("name", CONTRACT_NAMES)
def test_every_entry_point_that_reads_was_read(compiled, recorder, name):
    methods = getattr(compiled, name).contract_type.view_methods
    selectors = {method.name: keccak(text=method.selector)[:4] for method in methods}
    assert [each for each, selector in selectors.items() if not recorder.taken[selector]] == []


def test_every_entry_point_has_a_selector_of_its_own(compiled):
    """So that what was called is told apart by it."""
    methods = [
        method.selector
        for name in CONTRACT_NAMES
        for method in getattr(compiled, name).contract_type.mutable_methods
    ]
    assert len({keccak(text=selector)[:4] for selector in methods}) == len(methods)
