"""A task's bundle: the organisation's files for its participants, as one canonical tar file.

The same directory gives the same bytes on every machine: sorted names, no times, no owners. The
bundle is a blob, so its CID names it and every node serves it. `steelyard.json` at its root holds
the settings that training functions see as `ctx.config`.

Reading a bundle never runs it. Unpacking refuses links, absolute paths and `..`.
"""

import io
import json
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .documents import parse_json
from .errors import ClientError, InvalidTask
from .keys import MAX_KEY_FILE_BYTES

CONFIG_NAME: Final = "steelyard.json"
MAX_BUNDLE_BYTES: Final = 8 * 2**20
MAX_BUNDLE_FILES: Final = 1_000
MAX_CONFIG_BYTES: Final = 65_536
SKIPPED_NAMES: Final = frozenset({"__pycache__", ".git", ".venv", ".steelyard", "node_modules"})

Config = dict[str, str | int | float | bool | None]


def encode_bundle(directory: Path | None, config: Mapping[str, object]) -> bytes:
    """Return the tar file of `directory` (its regular files) with `config` as steelyard.json.

    Raises: InvalidTask `bundle_missing`, `bundle_link`, `bundle_too_large`, `bundle_config`,
    `bundle_key`, `bundle_name`.
    """
    files = {} if directory is None else read_directory(directory)
    if config:
        if CONFIG_NAME in files:
            raise InvalidTask(
                "bundle_config", f"give the settings in {CONFIG_NAME} or as config=, not in both"
            )
        check_config(config)
        files[CONFIG_NAME] = (json.dumps(config, sort_keys=True, indent=1) + "\n").encode()
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


def read_directory(directory: Path) -> dict[str, bytes]:
    """Return the regular files below `directory` by their relative names."""
    if not directory.is_dir():
        raise InvalidTask("bundle_missing", f"{directory} is not a directory")
    files: dict[str, bytes] = {}
    total = 0
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if SKIPPED_NAMES.intersection(relative.parts) or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file():
            raise InvalidTask("bundle_link", f"{path} is not a regular file; copy it in")
        total += path.stat().st_size
        if total > MAX_BUNDLE_BYTES or len(files) >= MAX_BUNDLE_FILES:
            raise InvalidTask(
                "bundle_too_large",
                f"a bundle has at most {MAX_BUNDLE_FILES} files and {MAX_BUNDLE_BYTES} bytes; "
                "leave data sets and weights out",
            )
        content = path.read_bytes()
        check_no_key(path, content)
        files[relative.as_posix()] = content
    return files


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
    if "\\" in entry.name or ":" in entry.name or "\0" in entry.name:
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
