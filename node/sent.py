"""`deposit.json`: the transaction with which `steelyard node deposit` puts coins at stake.

Nothing on the chain shows which command made a stake grow, so a command that was killed and is run
again must know. The signed transaction is on disk before any node has it, and stays there until the
command has said what came of it. What comes in is this file, or nothing; what can go wrong:

1. The same amount again is that transaction: the same bytes are sent, nothing else is signed.
2. Another amount waits until that one is at its end, and says so.
3. What was refused, by the node or in its block, moved no coins: it is forgotten.
4. Where its nonce is used, by the keeper perhaps, and no receipt is there, nothing is signed:
   `sending_unclear` says so once, and then it is forgotten.
5. A file that is damaged, or of another account or chain, is nobody's guess: `deposit_file`.
6. One command at a time: a second would take the first one's coins for its own, and forget them
   before they were told of. `deposit_busy`.

The client's journal does the same for all that a client sends (`client/sending.py`).
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from steelyard.chain.errors import InvalidTransaction, SteelyardError
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address

from .blobs import sync_directory

DEPOSIT_FILE: Final = "deposit.json"
FORMAT: Final = "steelyard-deposit"
VERSION: Final = 1
MAX_FILE_BYTES: Final = 16_384


class SendingUnclear(SteelyardError):
    """Coins whose nonce is used, by nobody knows whom: they may have been put in."""

    code = "sending_unclear"

    def __init__(self, message: str) -> None:
        super().__init__(self.code, message)


class SentFile:
    """The file of one account on one chain, in a validator's directory. Raises SteelyardError."""

    def __init__(self, directory: Path, address: Address, genesis_hash: str) -> None:
        self.path, self._address = directory / DEPOSIT_FILE, address
        self._header = {"format": FORMAT, "version": VERSION, "genesis_hash": genesis_hash}

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let no other command send meanwhile; the kernel lets go when the process ends.

        Raises SteelyardError deposit_file, deposit_busy.
        """
        try:
            handle = os.open(self.path.parent, os.O_RDONLY)
        except OSError as error:
            raise self._refuse(error.strerror) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SteelyardError(
                    "deposit_busy", f"another run is sending ({self.path}); wait for it"
                ) from None
            yield
        finally:
            os.close(handle)

    def read(self) -> Transaction | None:
        """Return what was sent and not told of. Raises SteelyardError deposit_file."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refuse(error.strerror) from None
        sent = self._decode(data)
        if sent is None:
            raise self._refuse(
                "it is damaged, or of another account or chain; see with `steelyard node standing` "
                "what is at stake, then delete it"
            )
        return sent

    def write(self, raw: bytes) -> None:
        """Keep a signed transaction, on disk afterwards; to be held meanwhile.

        Raises SteelyardError deposit_file.
        """
        document = self._header | {"raw": "0x" + raw.hex()}
        whole = self.path.with_name(f"{self.path.name}.new")
        try:
            handle = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(document, indent=1).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            whole.replace(self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            for path in (whole, self.path):  # it is not sent, so nothing is to be told of
                with suppress(OSError):
                    path.unlink()
            raise self._refuse(error.strerror) from None

    def remove(self) -> None:
        """Forget it: it was told of, or moved nothing. Raises SteelyardError deposit_file."""
        try:
            self.path.unlink(missing_ok=True)
            sync_directory(self.path.parent)
        except OSError as error:
            raise self._refuse(error.strerror) from None

    def _refuse(self, reason: str | None) -> SteelyardError:
        return SteelyardError("deposit_file", f"{self.path}: {reason}")

    def _decode(self, data: bytes) -> Transaction | None:
        """Return what the file says, if it is such a file, whole and ours."""
        try:
            fields = json.loads(data)
            sent = decode_transaction(bytes.fromhex(fields.pop("raw").removeprefix("0x")))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        except InvalidTransaction:
            return None
        return sent if (fields, sent.sender) == (self._header, self._address) else None
