"""A person's consent to run a task's bundle: exactly these files, on this machine.

A bundle is a stranger's program. Looking at it (`inspect_bundle`) runs nothing. Approving it notes
its CID and the digest of each file in the state directory and unpacks it there; from there, and
only unchanged, its code may be given to a client. Code of one's own needs no consent.

Approved code runs with all rights of whoever runs it: it can read what that person can read, and
send it anywhere. What is listed about it is found by reading it; a program that wants to hide what
it does can, so consent to what you have read or whose author you trust.
"""

import ast
import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steelyard.chain.cid import decode_cid, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import BlobName

from .bundle import MAX_BUNDLE_BYTES, Config, decode_bundle, read_config, unpack_bundle
from .errors import ClientError
from .published import write_file
from .rpc import Rpc

DIRECTORY: Final = "bundles"
"""Below the state directory."""
MAX_SOURCE_BYTES: Final = 2**20
"""Of a Python file that is looked into."""
MAX_RECORD_BYTES: Final = 2**20
ENTRY_NAMES: Final = frozenset({"train", "evaluate", "predict", "app", "client"})
"""What `loading.load_app` looks for."""
TELLING_CALLS: Final = frozenset({"open", "eval", "exec", "compile", "__import__"})
COMPILED: Final = frozenset({".pyc", ".pyo", ".so", ".pyd", ".dll", ".dylib", ".exe", ".whl"})


@dataclass(frozen=True, slots=True)
class Part:
    """One file. `kind`: python, text, binary, or compiled: code that nobody can read."""

    name: str
    size: int
    kind: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a bundle, found without running it."""

    cid: str
    size: int
    files: list[Part]
    entries: list[str]
    """Python files that a client can be started with."""
    imports: list[str]
    """Modules that its code names and that are neither its own nor Python's."""
    system: list[str]
    """Modules of Python's own library that its code names: files, processes, the network. Also if
    the bundle has a module of that name."""
    calls: list[str]
    """Of `TELLING_CALLS`: what opens files, or runs text as code."""
    config: Config
    is_approved: bool


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's files, checked against its name."""

    name: BlobName
    files: Mapping[str, bytes]

    @property
    def cid(self) -> str:
        """The bundle's CID."""
        return encode_cid(self.name)


def fetch_bundle(rpc: Rpc, text: str) -> Bundle:
    """Fetch a bundle by its CID and check it.

    Raises: InvalidBlobName; ClientError `blob_mismatch`, `bundle_malformed`; NodeRefused.
    """
    name, data = rpc.get_file(text, MAX_BUNDLE_BYTES)
    return Bundle(name, decode_bundle(data))


# -- looking ---------------------------------------------------------------------------------------
def inspect_bundle(bundle: Bundle, state: Path) -> Inspection:
    """Return what is in a bundle; nothing in it is run."""
    entries, named, calls = [], set[str](), set[str]()
    for name, content in sorted(bundle.files.items()):
        tree = parse_source(content) if name.endswith(".py") else None
        if tree is None:
            continue
        if ENTRY_NAMES.intersection(list_definitions(tree)):
            entries.append(name)
        named |= list_imports(tree)
        calls |= list_calls(tree)
    own = list_own_modules(bundle.files, entries)
    return Inspection(
        bundle.cid,
        bundle.name.size,
        [
            Part(name, len(data), get_kind(name, data))
            for name, data in sorted(bundle.files.items())
        ],
        entries,
        sorted(named - own - sys.stdlib_module_names),
        sorted(named & sys.stdlib_module_names),
        sorted(calls),
        read_config(bundle.files),
        is_approved(state, bundle.cid),
    )


def get_kind(name: str, content: bytes) -> str:
    """Return what a file is: python, text, binary, or compiled."""
    if COMPILED.intersection(suffix.lower() for suffix in Path(name).suffixes):
        return "compiled"
    try:
        content.decode()
    except UnicodeDecodeError:
        return "binary"
    if b"\0" in content:
        return "binary"
    return "python" if name.endswith(".py") else "text"


def parse_source(content: bytes) -> ast.Module | None:
    """Return a Python file's syntax tree; None if it is not Python, or too large to look into."""
    if len(content) > MAX_SOURCE_BYTES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def list_own_modules(files: Mapping[str, bytes], entries: Sequence[str]) -> set[str]:
    """Return the modules that Python takes from the bundle, whichever entry it is started with.

    An entry's directory comes first where Python looks. A directory without `__init__.py` does not
    count: what is installed under its name goes before it.
    """
    prefixes = {name[: name.rfind("/") + 1] for name in entries} or {""}
    found = []
    for prefix in prefixes:
        below = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
        sources = [name.removesuffix(".py") for name in below if name.endswith(".py")]
        found.append({name.removesuffix("/__init__") for name in sources})
    return set.intersection(*found)


def list_definitions(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or imports at its top level."""
    names = set[str]()
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.ImportFrom(names=found):
                names |= {alias.asname or alias.name for alias in found}
    return names


def list_imports(tree: ast.Module) -> set[str]:
    """Return the first words of the modules that a file imports, wherever in it."""
    names = set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=found):
                names |= {alias.name.partition(".")[0] for alias in found}
            case ast.ImportFrom(module=str(module), level=0):
                names.add(module.partition(".")[0])
    return names


def list_calls(tree: ast.Module) -> set[str]:
    """Return which of `TELLING_CALLS` a file names."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names & TELLING_CALLS


# -- consent ---------------------------------------------------------------------------------------
def approve_bundle(bundle: Bundle, state: Path) -> Path:
    """Note consent to exactly this bundle and unpack it. Returns its directory.

    Raises: ClientError `bundle_altered` if its directory holds something else, `bundle_hidden`,
    `file_write`.
    """
    check_nothing_hidden(bundle)
    directory = get_directory(state) / bundle.cid
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in bundle.files.items()}
    if not directory.exists():
        fresh = directory.with_name(f"{bundle.cid}.{os.getpid()}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir(parents=True, mode=0o700)
            unpack_bundle(bundle.files, fresh / "files")
            (fresh / "files").mkdir(exist_ok=True)
            (fresh / "files").replace(directory)
            fresh.rmdir()
        except OSError as error:
            raise ClientError("file_write", f"cannot write {directory}: {error}") from None
    check_files(directory, digests)
    record = {"cid": bundle.cid, "approved_at": int(time.time()), "files": digests}
    write_file(get_record(state, bundle.cid), (json.dumps(record, indent=1) + "\n").encode())
    return directory


def check_nothing_hidden(bundle: Bundle) -> None:
    """Raises ClientError `bundle_hidden` for files that Python would run in place of its sources.

    A cached file can say that it need not be compared with the source beside it (PEP 552). Some
    file systems tell no case.
    """
    hidden = [name for name in bundle.files if "__pycache__" in name.casefold().split("/")]
    if hidden:
        raise ClientError(
            "bundle_hidden",
            f"the bundle has {hidden[0]!r}, which Python would run instead of the source that you "
            "read; tell the organisation",
        )


def withdraw_approval(state: Path, cid: str) -> bool:
    """Take consent back and delete the unpacked files. Returns False if there was none."""
    record = get_record(state, cid)
    known = record.exists()
    record.unlink(missing_ok=True)
    shutil.rmtree(get_directory(state) / encode_cid(decode_cid(cid)), ignore_errors=True)
    return known


def is_approved(state: Path, cid: str) -> bool:
    """Whether there is consent to this bundle here."""
    return get_record(state, cid).exists()


def check_consent(source: Path) -> None:
    """Refuse code from an unpacked bundle unless it was approved and is unchanged.

    Code from elsewhere is one's own: nothing is checked. Raises: ClientError `bundle_unapproved`,
    `bundle_altered`.
    """
    for directory in source.resolve().parents:
        if directory.parent.name != DIRECTORY or not is_cid(directory.name):
            continue
        record = directory.with_name(f"{directory.name}.json")
        if not record.is_file():
            raise ClientError(
                "bundle_unapproved",
                f"nobody has approved the bundle {directory.name} here; look at it with `steelyard "
                f"client inspect {directory.name}`, then `steelyard client approve` it",
            )
        check_files(directory, read_digests(record))


def is_cid(text: str) -> bool:
    """Whether a directory's name is a CID."""
    try:
        decode_cid(text)
    except SteelyardError:
        return False
    return True


def check_files(directory: Path, digests: Mapping[str, str]) -> None:
    """Raises ClientError `bundle_altered` unless the directory has these files and no others.

    What Python writes beside the code it runs (`__pycache__`) is not looked at.
    """
    found = {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and "__pycache__" not in path.parts
    }
    is_same = set(found) == set(digests) and all(
        not path.is_symlink()
        and path.is_file()
        and hashlib.sha256(path.read_bytes()).hexdigest() == digests[name]
        for name, path in found.items()
    )
    if not is_same:
        raise ClientError(
            "bundle_altered",
            f"the files in {directory} are not those of the bundle that was approved; delete the "
            "directory and approve the bundle again",
        )


def read_digests(record: Path) -> dict[str, str]:
    """Return what was approved. Raises ClientError `bundle_altered` for a damaged record."""
    try:
        if record.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError("too large")
        files = json.loads(record.read_text("utf-8"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClientError(
            "bundle_altered", f"the consent in {record} cannot be read ({error!r}); approve again"
        ) from None


def get_directory(state: Path) -> Path:
    """Return where approved bundles are."""
    return state / DIRECTORY


def get_record(state: Path, cid: str) -> Path:
    """Return where consent to a bundle is noted. Raises InvalidBlobName."""
    return get_directory(state) / f"{encode_cid(decode_cid(cid))}.json"
