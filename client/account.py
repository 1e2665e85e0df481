"""One account on one chain: nodes, key, journal and outbox, opened together and closed together.

Organisations and participants are both accounts; what they do is in their own modules.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from eth_account.signers.local import LocalAccount

from steelyard.chain.errors import clean
from steelyard.chain.types import Address

from .abi import check_number
from .contracts import Deployed, Rounds, Tasks
from .keys import load_key
from .outbox import Clock, Outbox, Receipt
from .rpc import Rpc
from .sending import Told, Transfer, transfer_coins
from .state import Journal, Status
from .transactions import Call

DEFAULT_STATE: Final = ".steelyard"
POLL_SECONDS: Final = 1.0

Report = Callable[[str], None]
"""Called with one line of progress."""


def print_progress(line: str) -> None:
    """Write one line of progress to stderr, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {clean(line)}", file=sys.stderr, flush=True)


class Account:
    """A key that sends transactions to the contracts, with everything that makes sending safe."""

    def __init__(
        self,
        nodes: str | Sequence[str] | Rpc,
        key: str | Path | LocalAccount,
        *,
        state: str | Path = DEFAULT_STATE,
        password: str | None = None,
        report: Report = print_progress,
        clock: Clock | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`key`: a key file or an account. `state`: where the journal is. `poll_seconds`: how often
        the chain is looked at. Asks the nodes which chain they are on.

        Raises: InvalidKey, InvalidState, NodeUnreachable.
        """
        self.clock = clock or Clock()
        self.report, self.poll_seconds = report, poll_seconds
        self.signer = key if isinstance(key, LocalAccount) else load_key(Path(key), password)
        self.rpc = nodes if isinstance(nodes, Rpc) else Rpc(nodes, sleep=self.clock.sleep)
        self.address = Address(bytes.fromhex(self.signer.address[2:]))
        self.state = Path(state)
        self.journal = Journal(self.state, self.rpc.network, self.address)
        self.outbox = Outbox(
            self.rpc,
            self.journal,
            self.signer,
            clock=self.clock,
            report=self.report,
            poll_seconds=poll_seconds,
        )
        self.told = Told(self.journal, self.outbox.turn)
        self.tasks, self.rounds = Tasks(self.rpc), Rounds(self.rpc)

    def close(self) -> None:
        """Close connections and journal, and let another process use the state directory."""
        self.journal.close()
        self.rpc.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def send(
        self,
        label: str,
        name: str,
        *arguments: object,
        value: int = 0,
        contract: Deployed | None = None,
    ) -> Receipt:
        """Call a function of Tasks, or of `contract`, once under `label`; return the receipt.

        Raises: ClientError `number_range`; as `Outbox.send`.
        """
        return self.outbox.send(
            label, self.build_call(name, *arguments, value=value, contract=contract)
        )

    def build_call(
        self, name: str, *arguments: object, value: int = 0, contract: Deployed | None = None
    ) -> Call:
        """Return a call of a function of Tasks, or of `contract`.

        Raises: ClientError `number_range`.
        """
        target = contract or self.tasks
        check_number("value", value)
        return Call(target.address, target.encode(name, *arguments), value)

    def send_coins(self, to: str | Address, amount: int) -> Transfer:
        """Send `amount` wei to another account, once, and return what came of it.

        Killed before it returns and called again, it sends nothing twice. After that, the same call
        sends again. Raises: as `sending.transfer_coins`.
        """
        return transfer_coins(self, to, amount)

    def telling(self) -> AbstractContextManager[None]:
        """Return a block at whose end, and not before, its calls that carry coins have been told.

        Killed inside it and run again, it sends nothing twice: so a program can write down what
        came of them first. Other threads that send wait meanwhile.
        """
        return self.told.hold()

    def get_label(self, prefix: str) -> str:
        """Return the label of something that may be done again once it is done.

        A transaction on its way keeps its label; otherwise the next number. Callers bring the
        outbox to its end and look at the chain first, so nothing is done twice by accident.
        """
        entries = self.journal.get_entries(prefix + "/")
        pending = [entry for entry in entries if entry.status is Status.SIGNED]
        if pending:
            return pending[0].label
        return f"{prefix}/{1 + len({entry.label for entry in entries})}"
