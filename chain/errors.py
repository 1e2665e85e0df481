"""Someone else's mistakes. Each has a stable `code`, which tests, logs and RPC answers rely on.

Our own mistakes are `assert`s. A `code` is snake_case and never reused for another meaning;
`docs/errors.md` lists them with what to do next.
"""


class SteelyardError(Exception):
    """Input that this software refuses, with a code that programs can rely on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def clean(text: str) -> str:
    """Return a stranger's words without what a terminal obeys: they could write lines of ours."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def clean_lines(text: str) -> str:
    """Return text of ours, whose line breaks stay, with strangers' words in it."""
    return "\n".join(map(clean, text.split("\n")))


class InvalidBlobName(SteelyardError):
    """A CID, digest or size that names no blob of ours."""


class InvalidModel(SteelyardError):
    """Bytes that are not a canonical model file."""


class InvalidUpdate(SteelyardError):
    """Bytes that are not an update, or an update that is bound to something else."""


class InvalidAggregation(SteelyardError):
    """An aggregation that cannot be computed within the bounds."""


class InvalidCall(SteelyardError):
    """A call that none of our precompiles can answer, whatever it is about."""


class InvalidEvidence(SteelyardError):
    """Evidence that proves nothing."""


class InvalidTransaction(SteelyardError):
    """A transaction that may not enter a block."""


class InvalidBlock(SteelyardError):
    """A block that breaks a rule of the chain."""


class InvalidGenesis(SteelyardError):
    """A genesis document that cannot start a chain."""


class InvalidEpochSet(SteelyardError):
    """Bytes, or an answer of Staking, that are no validator set."""


class InvalidVote(SteelyardError):
    """A vote, certificate or consensus message that breaks a rule."""


class InvalidKey(SteelyardError):
    """Key material that must not be used."""


class UnavailableBlob(SteelyardError):
    """An admitted blob that this machine lacks: wait and fetch; never an EVM result."""
