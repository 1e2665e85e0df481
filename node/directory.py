"""The data directory: one process at a time, and where everything is."""

import fcntl
import os
import shutil
from pathlib import Path

from steelyard.chain.errors import InvalidGenesis, SteelyardError
from steelyard.chain.genesis import Genesis, parse_genesis

from .store import StorageFull

GENESIS_FILE = "genesis.json"
CHAIN, SIGNER, KEYS, LOCK, ENDPOINT = "chain", "signer", "keys", "LOCK", "endpoint"


class DirectoryLock:
    """Held while a node uses the directory; the kernel lets go of it when the process ends."""

    def __init__(self, directory: Path) -> None:
        """Raises SteelyardError data_locked, data_missing."""
        if not directory.is_dir():
            raise SteelyardError(
                "data_missing",
                f"{directory} is no directory; create it with `steelyard node init {directory}`",
            )
        self._file = (directory / LOCK).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read(32).strip() or "unknown"
            self._file.close()
            raise SteelyardError(
                "data_locked",
                f"{directory} is used by process {holder}; stop it first, never run two validators "
                "with one key",
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def check_space(directory: Path, needed: int) -> None:
    """Stop while there is still room to stop in. Raises StorageFull."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise StorageFull(
            "disk_full",
            f"{free} bytes are free under {directory} and {needed} wanted; free some space, and "
            "the node goes on by itself",
        )


def read_genesis(directory: Path) -> Genesis:
    """The chain of a data directory. Raises SteelyardError genesis_missing, InvalidGenesis."""
    return parse_document(read_genesis_document(directory), directory / GENESIS_FILE)


def parse_document(document: bytes, path: Path) -> Genesis:
    """What the bytes of this file say. Raises InvalidGenesis, its message with the file's name."""
    try:
        return parse_genesis(document)
    except InvalidGenesis as error:
        raise InvalidGenesis(
            error.code,
            f"{path}: {error.message}; if it should be right, take the chain's original document: "
            "any of its nodes serves it (GET /chain/genesis), its hash is what the operators "
            "compared",
        ) from None


def read_genesis_document(directory: Path) -> bytes:
    """The bytes of genesis.json. Raises SteelyardError genesis_missing."""
    path = directory / GENESIS_FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SteelyardError(
            "genesis_missing",
            f"{path} does not exist; `steelyard node init {directory}` makes one, or copy the "
            "document of the chain that you want to join",
        ) from None
