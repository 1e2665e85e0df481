"""One of four real validators signs two things in a view: what becomes of it, and of the others."""

import json
import subprocess
import sys
from dataclasses import dataclass

from eth_abi import decode, encode
from eth_utils.crypto import keccak

from steelyard.chain.consensus.votes import Offence
from steelyard.chain.epochs import EpochSet, compute_epoch, decode_epoch_set, is_boundary
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.types import Address, Height
from steelyard.client.evidence import ARGUMENTS, REPORT
from steelyard.client.rpc import Rpc, as_hex, as_int
from steelyard.node.localnet import Localnet
from tests.e2e.equivocator import start_equivocator

from .cluster import (
    Wallet,
    find_penalties,
    find_validators,
    get_height,
    is_in_one,
    make_account,
    run_cluster,
    wait_until,
)

EPOCH_BLOCKS = 12
HEARTBEAT_MS = 250
CHEAT = 4
HONEST = (1, 2, 3)
REPORT_GAS = 3_000_000
MAX_SET_BYTES = 2**20


@dataclass(frozen=True)
class Aftermath:
    """What was seen after one validator contradicted itself."""

    guilty: Address
    slashed: frozenset[Address]
    set_after: EpochSet
    """Of the first epoch in which the penalty counts."""
    blocks_after: int
    """Made final in that epoch and later, by three."""
    is_in_one: bool
    true_verdict: str
    """What `steelyard audit evidence` says of the report."""
    forged_verdict: str
    """What it says of one that accuses an honest validator with the same signatures."""

    def __str__(self) -> str:
        return (
            f"{len(self.slashed)} slashed, {len(self.set_after.members)} left, {self.blocks_after} "
            f"blocks after; evidence {self.true_verdict}, forged {self.forged_verdict}"
        )

    @property
    def is_right(self) -> bool:
        """Was the cheat, and nobody else, punished and removed, and is all of it proven?"""
        members = {member.address for member in self.set_after.members}
        return (
            self.slashed == {self.guilty}
            and self.guilty not in members
            and len(members) == len(HONEST)
            and self.blocks_after > 0
            and self.is_in_one
            and (self.true_verdict, self.forged_verdict) == ("YES", "REFUTED")
        )


def watch_equivocation(offence: Offence) -> Aftermath:
    """Let validator 4 cheat, and wait until the others went on without it."""

    def start(net: Localnet, number: int) -> None:
        if number == CHEAT:
            start_equivocator(net, number, offence)
        else:
            net.start(number)

    changes = {"epoch_blocks": EPOCH_BLOCKS, "heartbeat_ms": HEARTBEAT_MS}
    with run_cluster(accounts=1, start=start, **changes) as net:
        rpc, validators = Rpc(net.urls[1]), find_validators(net)
        wait_until(lambda: bool(find_penalties(rpc)), "somebody is slashed")
        penalty = find_penalties(rpc)[0]
        height = Height(as_int(penalty["blockNumber"]))
        out = compute_epoch(height, EPOCH_BLOCKS) + (2 if is_boundary(height, EPOCH_BLOCKS) else 1)
        wait_until(
            lambda: all(get_height(net, one) > EPOCH_BLOCKS * out + 2 for one in HONEST),
            "three go on without it",
        )
        wallet = Wallet.open(make_account(0), net.urls[1])
        try:
            honest = validators[HONEST[0]].address
            forged = send_forged(rpc, wallet, penalty["transactionHash"], honest)
        finally:
            wallet.close()
        return Aftermath(
            guilty=validators[CHEAT].address,
            slashed=frozenset(
                Address(bytes.fromhex(one["topics"][1][-40:])) for one in find_penalties(rpc)
            ),
            set_after=fetch_set(rpc, out),
            blocks_after=get_height(net, 1) - EPOCH_BLOCKS * out,
            is_in_one=is_in_one(net, HONEST),
            true_verdict=audit(net, penalty["transactionHash"]),
            forged_verdict=audit(net, forged),
        )


def fetch_set(rpc: Rpc, epoch: int) -> EpochSet:
    """Return the validators of an epoch, as a node serves them."""
    return decode_epoch_set(rpc.get_bytes(f"/chain/validators/{epoch}", MAX_SET_BYTES))


def send_forged(rpc: Rpc, wallet: Wallet, report: str, innocent: Address) -> str:
    """Put a report on the chain that blames somebody else; return its hash once it is final."""
    data = bytes.fromhex(rpc.call("eth_getTransactionByHash", report)["input"][2:])
    assert data[:4] == REPORT
    first, _, sum_of_first, second, _, sum_of_second = decode(ARGUMENTS, data[4:])
    blamed = [as_hex(innocent)]
    forged = encode(ARGUMENTS, (first, blamed, sum_of_first, second, blamed, sum_of_second))
    raw = wallet.sign_call(STAKING_ADDRESS, REPORT + forged, REPORT_GAS)
    wallet.hand_in(raw)
    return as_hex(keccak(raw))


def audit(net: Localnet, report: str) -> str:
    """Ask `steelyard audit evidence`, which trusts the genesis document alone."""
    genesis = str(net.directory / "genesis.json")
    words = ("audit", "evidence", report, "--node", net.urls[2], "--genesis", genesis, "--json")
    ended = subprocess.run(
        [sys.executable, "-m", "steelyard", *words], capture_output=True, check=False, timeout=180
    )
    return str(json.loads(ended.stdout)["verdict"])
