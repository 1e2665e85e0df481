"""A task's bundle: the organisation's files for its participants, as one canonical tar file.

The same directory gives the same bytes on every machine: sorted names, no times, no owners. The
bundle is a blob, so its CID names it and every node serves it. `steelyard.json` at its root holds
the settings that training functions see as `ctx.config`.

A bundle is public for ever, and directories of programs have data beside them: program text goes
in by itself, anything else only by its name, hidden files never.

Reading a bundle never runs it. Unpacking refuses links, absolute paths and `..`.
"""

import io
import json
import math
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from .documents import parse_json
from .errors import ClientError, InvalidTask
from .keys import MAX_KEY_FILE_BYTES

CONFIG_NAME: Final = "steelyard.json"
MAX_BUNDLE_BYTES: Final = 8 * 2**20
MAX_BUNDLE_FILES: Final = 1_000
MAX_CONFIG_BYTES: Final = 65_536
SKIPPED_NAMES: Final = frozenset({"__pycache__", "node_modules"})
"""Directories that are left out, as is whatever begins with a dot."""
TEXT_SUFFIXES: Final = frozenset(
    {
        *(".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".rs", ".sh"),
        *(".toml", ".cfg", ".ini", ".yaml", ".yml", ".json", ".txt", ".md", ".rst"),
    }
)
TEXT_NAMES: Final = frozenset(
    {"AUTHORS", "CITATION", "COPYING", "LICENCE", "LICENSE", "Makefile", "NOTICE", "README"}
)
"""With the suffixes, what goes into a bundle without being named: what people write by hand."""
MOST_NAMED: Final = 10
"""Files in one message."""

Config = dict[str, str | int | float | bool | None]


def encode_bundle(
    directory: Path | None, config: Mapping[str, object], include: Sequence[str] = ()
) -> bytes:
    """Return the tar file of `directory` (its program text) with `config` as steelyard.json.

    `include`: files in it that are no program text and are meant to be public.
    Raises: InvalidTask `bundle_missing`, `bundle_data`, `bundle_include`, `bundle_link`,
    `bundle_too_large`, `bundle_config`, `bundle_key`, `bundle_name`.
    """
    if directory is None and include:
        raise InvalidTask("bundle_include", "bundle_include names files of a bundle; give one")
    files = {} if directory is None else read_directory(directory, include)
    if config:
        if CONFIG_NAME in files:
            raise InvalidTask(
                "bundle_config",
                f"{CONFIG_NAME} is written from the task's config; give the settings there, and "
                "take that file out of the directory",
            )
        files[CONFIG_NAME] = encode_config(config)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files, key=str.encode):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            try:
                archive.addfile(entry, io.BytesIO(files[name]))
            except ValueError as error:
                raise InvalidTask(
                    "bundle_name", f"{name!r} cannot be in a bundle ({error}); shorten it"
                ) from None
    data = stream.getvalue()
    if len(data) > MAX_BUNDLE_BYTES:
        raise InvalidTask("bundle_too_large", f"a bundle has at most {MAX_BUNDLE_BYTES} bytes")
    return data


def encode_config(config: Mapping[str, object]) -> bytes:
    """Return steelyard.json, as `read_config` takes it. Raises InvalidTask `bundle_config`."""
    check_config(config)
    text = (json.dumps(config, sort_keys=True, indent=1) + "\n").encode()
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidTask(
            "bundle_config", f"the settings have {len(text)} bytes, of {MAX_CONFIG_BYTES} at most"
        )
    return text


def read_directory(directory: Path, include: Sequence[str] = ()) -> dict[str, bytes]:
    """Return what goes into a bundle of `directory`, by relative names."""
    if not directory.is_dir():
        raise InvalidTask("bundle_missing", f"{directory} is not a directory")
    paths = list_files(directory)
    check_include(paths, include)
    check_text(paths, include)
    files: dict[str, bytes] = {}
    total = 0
    for name, path in paths.items():
        total += path.stat().st_size
        if total > MAX_BUNDLE_BYTES or len(files) >= MAX_BUNDLE_FILES:
            raise InvalidTask(
                "bundle_too_large",
                f"a bundle has at most {MAX_BUNDLE_FILES} files and {MAX_BUNDLE_BYTES} bytes; "
                "leave data sets and weights out",
            )
        content = path.read_bytes()
        check_no_key(path, content)
        files[name] = content
    return files


def list_files(directory: Path) -> dict[str, Path]:
    """Return the files below `directory` by relative names, but those that are never packed."""
    found: dict[str, Path] = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if any(part.startswith(".") or part in SKIPPED_NAMES for part in relative.parts):
            continue
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file():
            raise InvalidTask("bundle_link", f"{path} is not a regular file; copy it in")
        name = relative.as_posix()
        if not is_portable(name):
            raise InvalidTask(
                "bundle_name",
                f"{name!r} cannot be in a bundle, as not every system has such a name; rename it",
            )
        found[name] = path
    return found


def is_portable(name: str) -> bool:
    """Whether a name means one file, below its directory, to every participant's system."""
    return not any("\ud800" <= one <= "\udfff" or one in "\\:\0" for one in name)


def check_include(paths: Mapping[str, Path], include: Sequence[str]) -> None:
    """Raises InvalidTask `bundle_include` for a name of nothing that may be packed."""
    if isinstance(include, str) or not all(isinstance(name, str) for name in include):
        raise InvalidTask("bundle_include", 'bundle_include is a list of names: ["weights.npz"]')
    for name in include:
        if name not in paths:
            raise InvalidTask(
                "bundle_include",
                f"bundle_include names {name!r}, which is no file of the bundle's directory; "
                "hidden files are never packed",
            )


def check_text(paths: Mapping[str, Path], include: Sequence[str]) -> None:
    """Raises InvalidTask `bundle_data` for files that nobody wrote by hand and nobody named."""
    odd = [name for name, path in paths.items() if not is_text(path) and name not in set(include)]
    if not odd:
        return
    names = ", ".join(f"{name} ({paths[name].stat().st_size} bytes)" for name in odd[:MOST_NAMED])
    more = f" and {len(odd) - MOST_NAMED} more" if len(odd) > MOST_NAMED else ""
    raise InvalidTask(
        "bundle_data",
        f"a bundle is public for ever, and these are no program text: {names}{more}. Keep the "
        f"program in a directory of its own, or name what is meant to be public: "
        f"bundle_include = {json.dumps(odd[:1])}",
    )


def is_text(path: Path) -> bool:
    """Whether a file is, by its name, program text or what goes with it."""
    return path.suffix.lower() in TEXT_SUFFIXES or path.name in TEXT_NAMES


def describe_files(files: Mapping[str, bytes]) -> str:
    """Return names and sizes in one line."""
    return ", ".join(f"{name} ({len(files[name])} bytes)" for name in sorted(files))


def check_no_key(path: Path, content: bytes) -> None:
    """Raises InvalidTask `bundle_key` for a key file: bundles are public for ever."""
    if len(content) > MAX_KEY_FILE_BYTES:
        return
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict) and {"crypto", "Crypto"}.intersection(document):
        raise InvalidTask(
            "bundle_key", f"{path} is a key file and a bundle is public; keep it elsewhere"
        )


def check_config(config: Mapping[str, object]) -> None:
    """Raises InvalidTask `bundle_config` unless `config` is flat: names and plain values."""
    for name, value in config.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float | bool | None):
            raise InvalidTask(
                "bundle_config", f"setting {name!r} must be text, a number, true, false or null"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidTask("bundle_config", f"setting {name!r} is {value}, which no JSON has")


def decode_bundle(data: bytes) -> dict[str, bytes]:
    """Return the files of a bundle by name. Raises ClientError `bundle_malformed`."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise ClientError("bundle_malformed", "the bundle is larger than bundles may be")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for entry in archive:
                if len(files) >= MAX_BUNDLE_FILES:
                    raise ClientError("bundle_malformed", "the bundle has too many files")
                check_entry(entry)
                content = archive.extractfile(entry)
                assert content is not None, "a regular file has content"
                files[entry.name] = content.read()
    except (tarfile.TarError, ValueError, OSError) as error:
        raise ClientError("bundle_malformed", f"the bundle is not a tar file: {error}") from None
    for name in files:
        parents = name.split("/")[:-1]
        if any("/".join(parents[: depth + 1]) in files for depth in range(len(parents))):
            raise ClientError("bundle_malformed", f"the bundle has {name!r} below another file")
    return files


def check_entry(entry: tarfile.TarInfo) -> None:
    """Raises ClientError `bundle_malformed` for anything but a file inside the bundle."""
    parts = entry.name.split("/")
    if not entry.isreg() or entry.issparse() or any(part in ("", ".", "..") for part in parts):
        raise ClientError(
            "bundle_malformed", f"the bundle has {entry.name!r}, which is no plain file inside it"
        )
    if not is_portable(entry.name):
        raise ClientError("bundle_malformed", f"the bundle has an unsafe name {entry.name!r}")


def read_config(files: Mapping[str, bytes]) -> Config:
    """Return the settings in a bundle, {} without any. Raises ClientError `bundle_malformed`."""
    text = files.get(CONFIG_NAME)
    if text is None:
        return {}
    try:
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError("too large")
        config = parse_json(text)
        if not isinstance(config, dict):
            raise ValueError("not an object")
        check_config(config)
    except (ValueError, InvalidTask) as error:
        raise ClientError("bundle_malformed", f"{CONFIG_NAME} in the bundle: {error}") from None
    return config


def unpack_bundle(files: Mapping[str, bytes], directory: Path) -> None:
    """Write a bundle's files below a new directory. Raises ClientError `bundle_exists`."""
    if directory.exists():
        raise ClientError("bundle_exists", f"{directory} exists; choose a new directory")
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
