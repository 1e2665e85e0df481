"""docs/errors.md lists every error code of the source, and no other.

Codes are read from the syntax tree: from each call of an exception derived from SteelyardError (or
of another carrier of codes), from `super().__init__` of those with one code, from class attributes
`code`, and from the `data.code` of JSON-RPC errors. A code that is not written at the call is
followed to where it is: a constant, a loop over a table, a parameter. What cannot be followed
fails, so that no code hides.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from steelyard.client.outbox import NEVER_CODES, WAITING_CODES
from steelyard.client.refusals import HINTS
from steelyard.node.gateway import STATUSES
from steelyard.node.mempool import PASSING
from steelyard.node.rpc.errors import FAMILIAR, LIMIT_CODES

from .test_architecture import ROOT, iter_sources, parse

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ROOT_CLASS = "SteelyardError"
OTHER_CARRIERS = {"Alarm"}
"""Records with a `code` that are not exceptions: /health shows them."""
RPC_ERROR = "RpcError"
SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*(_\*)?")
"""Ends in `_*` where the rest is a number that somebody else chose."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """A module, and the functions around a call in it, the innermost last."""

    path: Path
    module: ast.Module
    functions: tuple[Function, ...] = ()


class CannotFollow(Exception):
    """A code whose text is not in the source."""


@cache
def parse_sources() -> dict[Path, ast.Module]:
    return {path: parse(path) for path in iter_sources("chain", "node", "client")}


def get_name(node: ast.expr) -> str:
    """The last word of a dotted name; empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@cache
def find_classes() -> list[ast.ClassDef]:
    return [
        node
        for module in parse_sources().values()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    ]


@cache
def find_carriers() -> set[str]:
    """SteelyardError and all that derive from it, in however many steps."""
    found = {ROOT_CLASS}
    while True:
        more = {
            node.name
            for node in find_classes()
            if any(get_name(one) in found for one in node.bases)
        }
        if more <= found:
            return found | OTHER_CARRIERS
        found |= more


@cache
def find_fixed() -> dict[str, str]:
    """Classes that have one code: it is a class attribute, or given to `super().__init__`."""
    fixed = {}
    for kind in find_classes():
        for node in ast.walk(kind):
            match node:
                case ast.Assign(targets=[ast.Name("code")], value=ast.Constant(str(code))):
                    fixed[kind.name] = code
                case ast.Call(
                    func=ast.Attribute(ast.Call(ast.Name("super")), "__init__"),
                    args=[ast.Constant(str(code)), *_],
                ) if kind.name in find_carriers():
                    fixed[kind.name] = code
    return fixed


def iter_calls(path: Path) -> Iterator[tuple[ast.Call, Place]]:
    """Every call of a module, with what is around it."""

    def visit(node: ast.AST, place: Place) -> Iterator[tuple[ast.Call, Place]]:
        if isinstance(node, Function):
            place = Place(place.path, place.module, (*place.functions, node))
        if isinstance(node, ast.Call):
            yield node, place
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place)

    module = parse_sources()[path]
    return visit(module, Place(path, module))


def follow(node: ast.expr, place: Place) -> set[str]:
    """All texts that an expression may have. Codes of caught errors, ours or a node's, add none."""
    match node:
        case ast.Constant(str(code)):
            return {code}
        case ast.IfExp():
            return follow(node.body, place) | follow(node.orelse, place)
        case ast.Attribute(attr="code") | ast.Subscript(slice=ast.Constant("code" | "error")):
            return set()
        case ast.JoinedStr(values=[ast.Constant(str(prefix)), ast.FormattedValue(value=value)]):
            rest = {"*"} if isinstance(value, ast.Attribute) else follow(value, place)
            return {prefix + one for one in rest}
        case ast.Call(func=ast.Attribute(ast.Name(table), "get"), args=[_, default]):
            return set(read_table(table, place, of_values=True)) | follow(default, place)
        case ast.Name(name):
            return follow_name(name, place)
    raise CannotFollow(f"{place.path}:{node.lineno}: {ast.unparse(node)}")


def follow_name(name: str, place: Place) -> set[str]:
    """What a name may hold: from its assignment, its loop, the callers of its function."""
    for function in reversed(place.functions):
        for node in ast.walk(function):
            match node:
                case ast.For(target=ast.Tuple(elts=[ast.Name(first), *_]), iter=table) if (
                    first == name
                ):
                    source = table.func.value if isinstance(table, ast.Call) else table  # type: ignore[attr-defined]
                    return set(read_table(get_name(source), place))
                case ast.Assign(targets=[ast.Name(target)], value=value) if target == name:
                    return set() if is_read_from_data(value) else follow(value, place)
        names = [one.arg for one in function.args.args if one.arg != "self"]
        if name in names:
            return follow_callers(function.name, names.index(name), place)
    constant = find_assignment(name, place.module)
    if constant is None:
        raise CannotFollow(f"{place.path}: {name}")
    return follow(constant, place)


def is_read_from_data(value: ast.expr) -> bool:
    """`data.get("code") …`: what a node said."""
    return any(
        isinstance(one, ast.Attribute) and one.attr == "get" and get_name(one.value) == "data"
        for one in ast.walk(value)
    )


def follow_callers(name: str, position: int, place: Place) -> set[str]:
    found: set[str] = set()
    for call, around in iter_calls(place.path):
        if get_name(call.func) == name:
            found |= follow(call.args[position], around)
    return found


def find_assignment(name: str, scope: ast.AST) -> ast.expr | None:
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(target)]) if target == name:
                return node.value
            case ast.AnnAssign(target=ast.Name(target)) if target == name:
                return node.value
    return None


def read_table(name: str, place: Place, *, of_values: bool = False) -> list[str]:
    """The texts in a dictionary's keys or values, or in the first column of a tuple of tuples."""
    table = find_assignment(name, place.functions[-1]) or find_assignment(name, place.module)
    match table:
        case ast.Dict():
            cells = table.values if of_values else table.keys
        case ast.Tuple():
            cells = [row.elts[0] for row in table.elts if isinstance(row, ast.Tuple)]
        case _:
            raise CannotFollow(f"{place.path}: {name} is no table")
    texts = [cell.value for cell in cells if isinstance(cell, ast.Constant)]
    assert len(texts) == len(cells)
    return [str(text) for text in texts]


def read_call(call: ast.Call, place: Place) -> set[str]:
    """The codes that one call may carry."""
    kind = get_name(call.func)
    if kind == RPC_ERROR:
        data = [one for one in call.args if isinstance(one, ast.Dict)]
        pairs = [pair for one in data for pair in zip(one.keys, one.values, strict=True)]
        return {
            code
            for key, value in pairs
            if isinstance(key, ast.Constant) and key.value == "code"
            for code in follow(value, place)
        }
    if kind not in find_carriers() or kind in find_fixed():
        return set()
    given = [one.value for one in call.keywords if one.arg == "code"]
    return follow((call.args or given)[0], place)


@cache
def collect_codes() -> set[str]:
    """Every code of the source; read once, when the first test asks."""
    found = set(find_fixed().values())
    for path in parse_sources():
        for call, place in iter_calls(path):
            found |= read_call(call, place)
    return found


LISTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)


def test_the_page_lists_every_code_of_the_source() -> None:
    assert sorted(collect_codes() - set(LISTED)) == [], "add a line for each to docs/errors.md"


def test_the_page_lists_no_code_that_the_source_lacks() -> None:
    assert sorted(set(LISTED) - collect_codes()) == [], "remove these lines from docs/errors.md"


def test_the_page_lists_a_code_once_with_a_meaning_and_what_to_do() -> None:
    assert [code for code, count in Counter(LISTED).items() if count > 1] == []
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert [row for row in rows if not re.fullmatch(r"\| `[^`]+` \| [^|]+ \| [^|]+ \|", row)] == []


def test_codes_are_snake_case() -> None:
    assert sorted(code for code in collect_codes() if not SNAKE_CASE.fullmatch(code)) == []


@pytest.mark.parametrize(
    "codes",
    [STATUSES, FAMILIAR, LIMIT_CODES, PASSING, WAITING_CODES, NEVER_CODES],
    ids=["STATUSES", "FAMILIAR", "LIMIT_CODES", "PASSING", "WAITING_CODES", "NEVER_CODES"],
)
def test_programs_act_on_codes_that_exist(codes: "dict[str, object] | frozenset[str]") -> None:
    assert sorted(set(codes) - collect_codes()) == []


def test_hints_are_given_for_reverts_that_exist() -> None:
    reverts = [hint.removeprefix("fedavg: ") for hint in HINTS if hint.startswith("fedavg: ")]
    assert reverts
    assert sorted(set(reverts) - collect_codes()) == []


def test_the_collector_finds_codes_however_they_are_given() -> None:
    given = {
        "update_magic",  # a literal
        "state_missing",  # by a class with one code
        "data_corrupt",  # a class attribute
        "block_bloom",  # a row of a table
        "task_rounds",  # an f-string over a table
        "delta_not_finite",  # a parameter
        "blob_mismatch",  # a constant
        "not_found",  # a dictionary's value
        "rpc_error",  # one branch of a condition
        "call_failed",  # the data of a JSON-RPC error
        "driver_failed",  # an alarm
        "http_*",  # a status that somebody else chose
    }
    assert given <= collect_codes()


def test_a_code_that_cannot_be_followed_fails() -> None:
    place = Place(Path("nowhere.py"), ast.parse(""))
    with pytest.raises(CannotFollow):
        follow(ast.parse("make_code()", mode="eval").body, place)
