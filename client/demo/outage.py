"""The demo's accident: one of the validators is killed and comes back, while hospitals train."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from eth_hash.auto import keccak

from steelyard.chain.params import STAKING_ADDRESS

from .report import Recovery
from .stage import Stage

VICTIM: Final = 3
"""The validator that is killed; not the one that auditors ask."""
SLASHED_TOPIC: Final = f"0x{keccak(b'Slashed(address,uint256,uint256,uint256,uint256)').hex()}"


class Outage:
    """One validator is killed half-way, and comes back when another quarter of the rounds is done.

    Hospitals that asked it ask another one; the other three are more than two thirds.
    """

    def __init__(self, stage: Stage) -> None:
        rounds = stage.options.rounds
        self._stage = stage
        self._kill_after = rounds // 2
        self._back_after = min(rounds, self._kill_after + max(1, rounds // 4))
        self._return: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1)

    def process_round(self, number: int) -> str:
        """Return what to say behind the line of a round that is over."""
        validators = self._stage.validators
        if number == self._kill_after:
            validators.kill(VICTIM)
            return f"   validator {VICTIM} KILLED (-9)"
        if number == self._back_after:
            self._return = self._pool.submit(validators.bring_back, VICTIM)
            return f"   validator {VICTIM} starts again"
        return ""

    def finish(self) -> Recovery | None:
        """Wait until it is back; return how it is. None: there were too few rounds to try."""
        if self._return is not None:
            self._return.result()
        self._pool.shutdown()
        if self._return is None:
            return None
        status = self._stage.validators.get_status()
        slashed = self._stage.organisation.rpc.call(
            "eth_getLogs", {"fromBlock": "0x0", "address": f"0x{STAKING_ADDRESS.hex()}"}
        )
        return Recovery(
            validator=VICTIM,
            has_same_root=bool(status["agree"]),
            has_voted_twice=any(log["topics"][0] == SLASHED_TOPIC for log in slashed),
        )
