"""A validator that cheats, as a process: `equivocator.py OFFENCE run DIR PASSWORD_FILE`.

It is the node as it is, but whenever it votes it also signs what that vote forbids, which its
signer's database no longer refuses, and sends both to everybody.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from steelyard.chain.block import Block
from steelyard.chain.consensus.messages import Message, Proposal
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Offence,
    Statement,
    Vote,
)
from steelyard.chain.types import Hash
from steelyard.node.config import load_config
from steelyard.node.directory import KEYS
from steelyard.node.keyfiles import read_secrets
from steelyard.node.localnet import CHILDREN, LOG_FILE, PASSWORD_FILE, PID_FILE, Localnet
from steelyard.node.logs import configure_logs
from steelyard.node.network.service import Network
from steelyard.node.service import run_service
from steelyard.node.signer import ConflictingVote, Signer

ROOT = Path(__file__).resolve().parents[2]
OTHER = Hash(b"\xee" * 32)
"""No block hashes to this."""
CONTRADICTIONS: dict[Offence, tuple[Kind, Kind, Hash]] = {
    Offence.TWO_NOTARIZATIONS: (Kind.NOTARIZE, Kind.NOTARIZE, OTHER),
    Offence.TWO_FINALIZATIONS: (Kind.FINALIZE, Kind.FINALIZE, OTHER),
    Offence.FINALIZED_AND_NULLIFIED: (Kind.FINALIZE, Kind.NULLIFY, NO_HASH),
    Offence.FINALIZED_ANOTHER: (Kind.FINALIZE, Kind.NOTARIZE, OTHER),
}
"""After which vote of its own it says what else."""
FIRST_VIEW = 3


def start_equivocator(net: Localnet, number: int, offence: Offence) -> None:
    """Start a validator of `net` as one that cheats; `net` stops it like any other."""
    directory = net.get_directory(number)
    words = (str(offence), "run", str(directory), str(net.directory / PASSWORD_FILE))
    with (directory / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.equivocator", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )
    CHILDREN[directory] = process
    (directory / PID_FILE).write_text(f"{process.pid}\n")


def contradict(vote: Vote, offence: Offence, signer: Signer) -> Vote | None:
    """Return the other half of the offence, if this vote is the first one."""
    said = vote.statement
    kind, other_kind, other_hash = CONTRADICTIONS[offence]
    if said.kind != kind or said.view < FIRST_VIEW:
        return None
    other = Statement(said.epoch, said.view, other_kind, other_hash)
    try:
        return signer.sign_vote(other, vote.signer)
    except ConflictingVote:
        return None  # too old: a vote that is only repeated


def cheat(offence: Offence) -> None:
    """Let this process's signer sign anything, and its network send both halves."""
    send, create = Network.broadcast, Signer.__init__
    signers: list[Signer] = []

    def remember(signer: Signer, *arguments: Any, **named: Any) -> None:
        create(signer, *arguments, **named)
        signers.append(signer)

    def broadcast(network: Network, message: Message, block: Block | None) -> None:
        send(network, message, block)
        vote = message.vote if isinstance(message, Proposal) else message
        if isinstance(vote, Vote):
            other = contradict(vote, offence, signers[0])
            if other is not None:
                send(network, other, None)

    Signer.__init__ = remember  # type: ignore[method-assign]
    Signer._check_signable = lambda *_: None  # type: ignore[method-assign]
    Network.broadcast = broadcast  # type: ignore[method-assign]


def main(offence: str, directory: Path, password_file: Path) -> None:
    """Run it until it is interrupted."""
    secrets = read_secrets(directory / KEYS, password_file.read_text(encoding="utf-8").strip())
    cheat(Offence(offence))
    configure_logs("info")
    run_service(directory, secrets, load_config(directory), print)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[3]), Path(sys.argv[4]))
