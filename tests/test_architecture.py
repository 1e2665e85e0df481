"""The shape of the house: who imports whom, what `chain` may touch, how large things get."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("chain", "node", "client")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 70

# What `chain` must not reach: clocks, sockets, threads, randomness, the environment.
IMPURE = {
    *("asyncio", "concurrent", "datetime", "http", "locale", "multiprocessing", "os", "random"),
    *("secrets", "select", "signal", "socket", "subprocess", "tempfile", "threading", "time"),
    *("urllib", "uuid"),
}
ENGINE = {"eth", "trie"}
ENGINE_FILES = {"evm.py", "evm_guards.py", "evm_state.py"}
FORBIDDEN_NAMES = {"utils", "common", "base", "manager", "helpers"}
BASE_INSTALL_MISSING = {
    "eth",
    "trie",
    "lmdb",
    "numba",
    "py_ecc",
    "pyblst",
    "torch",
    "zmq",
    "starlette",
}


def iter_sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def find_imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Every imported module as an absolute name, with its line."""
    return tuple(iter_imports(path))


def iter_imports(path: Path) -> Iterator[tuple[int, str]]:
    package = ["steelyard", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def find_forbidden(folder: str, is_forbidden: object) -> list[str]:
    assert callable(is_forbidden)
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in iter_sources(folder)
        for line, name in find_imports(path)
        if is_forbidden(name)
    ]


@pytest.mark.parametrize(
    ("folder", "others"),
    [("chain", ("node", "client")), ("node", ("client",)), ("client", ("node",))],
)
def test_a_folder_never_imports_its_neighbours(folder: str, others: tuple[str, ...]) -> None:
    def is_forbidden(name: str) -> bool:
        return any(f"{name}.".startswith(f"steelyard.{other}.") for other in others)

    assert find_forbidden(folder, is_forbidden) == []


def test_nobody_imports_our_folders_by_their_bare_names() -> None:
    bare = {*FOLDERS, "contracts"}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in iter_sources("chain", "node", "client", "tests", "contracts")
        for line, name in find_imports(path)
        if name.split(".")[0] in bare
    ]
    assert found == []


def test_chain_reaches_no_clock_socket_thread_or_randomness() -> None:
    assert find_forbidden("chain", lambda name: name.split(".")[0] in IMPURE) == []


def test_chain_has_no_coroutines() -> None:
    found = [
        f"{path.name}:{node.lineno}"
        for path in iter_sources("chain")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert found == []


def test_chain_has_no_float_literals_and_no_true_division() -> None:
    found = [
        f"{path.name}:{node.lineno}"
        for path in iter_sources("chain")
        for node in ast.walk(parse(path))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
    ]
    assert found == []


def test_only_the_engine_knows_py_evm() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in iter_sources(*FOLDERS)
        if not (path.parent.name == "chain" and path.name in ENGINE_FILES)
        for line, name in find_imports(path)
        if name.split(".")[0] in ENGINE
    ]
    assert found == []


def test_files_and_functions_stay_readable() -> None:
    for path in iter_sources(*FOLDERS, "tests", "contracts"):
        assert path.stem not in FORBIDDEN_NAMES, path
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_FILE_LINES, f"split {path}"
        long = [
            f"{node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
            for node in ast.walk(parse(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
        ]
        assert long == [], path


def test_the_protocol_page_names_every_call_of_the_precompile() -> None:
    from steelyard.chain import precompile

    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert precompile.SELECTORS
    assert [name for name in precompile.SELECTORS.values() if f"`{name}(" not in page] == []
