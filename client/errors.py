"""What can go wrong between a client and a chain, as types with a stable code.

Every message ends with what to do next. Codes are listed in `docs/errors.md`.
"""

from steelyard.chain.errors import SteelyardError


class ClientError(SteelyardError):
    """A request that this client cannot carry out as it stands."""


class NodeUnreachable(ClientError):
    """No configured node answered. Nothing is known about the request: try again."""

    def __init__(self, failures: dict[str, str], codes: dict[str, str] | None = None) -> None:
        listed = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
        super().__init__(
            "node_unreachable",
            f"no node answered ({listed}); check the address and that the node runs",
        )
        self.failures, self.codes = failures, codes or {}


class NodeRefused(ClientError):
    """A node answered with an error: JSON-RPC code, message and, for our own nodes, a code."""

    def __init__(self, code: str, message: str, *, rpc_code: int = 0, data: object = None) -> None:
        super().__init__(code, message)
        self.rpc_code, self.data = rpc_code, data


class Reverted(ClientError):
    """The chain ran the call and the contract refused it."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__("reverted", message or f"the contract refused: {reason}")
        self.reason = reason


class TransactionPending(ClientError):
    """A transaction was sent and is not in a block yet; running again resends the same bytes."""


class SendingUnclear(ClientError):
    """A call whose nonce is gone, to nobody knows whom: it may have been carried out."""

    code = "sending_unclear"

    def __init__(self, message: str) -> None:
        super().__init__(self.code, message)


class BlobGone(ClientError):
    """No node keeps a blob any more that has to be declared again."""

    code = "blob_missing"

    def __init__(self, cid: str) -> None:
        super().__init__(
            self.code,
            f"{cid} would expire too soon and no node keeps it any more, so nobody can declare it "
            "again; ask a node that has it (--node)",
        )


class InvalidState(ClientError):
    """A state directory that this run must not use."""


class InvalidTraining(ClientError):
    """The training function gave something that cannot become an update."""


class InvalidTask(ClientError):
    """A task description that the chain would refuse."""


class InvalidSeal(ClientError):
    """Something encrypted that does not open, or a key to which nothing can be sealed."""
