"""Watching over the node from inside: every few seconds its facts become alarms (`alarms.py`).

A thread of its own, so that a driver that hangs is noticed. It reads finalized data and asks the
contract Staking with a call, as any client could.
"""

import shutil
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import function_signature_to_4byte_selector

from steelyard.chain.block import Header
from steelyard.chain.epochs import EpochSet, compute_epoch
from steelyard.chain.errors import SteelyardError
from steelyard.chain.execute import CallRequest
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.types import Address

from .alarms import (
    AlarmBoard,
    Facts,
    Reach,
    Standing,
    State,
    compute_stall_seconds,
    find_alarms,
)
from .calls import start_thread
from .logs import log_alarm
from .network.mesh import PeerStatus
from .records import Alarm
from .store import CorruptData

if TYPE_CHECKING:
    from .node import Node

LOOK_SECONDS: Final = 2.0
STANDING_SECONDS: Final = 10.0
SILENT_SECONDS: Final = 30.0
"""Validators tell where they are every few seconds: one that is silent for this long is lost."""


class Watcher:
    """Looks at one node. `look` is one round, for tests to call."""

    def __init__(self, node: "Node", get_peers: Callable[[], Iterable[PeerStatus]] = tuple) -> None:
        self._node, self._get_peers = node, get_peers
        self.board = AlarmBoard()
        self._final_at = node.clock.get_seconds()
        self._standing: Standing | None = None
        self._standing_at = float("-inf")
        self._was_member = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self._node.subscribe(self._note_final)
        self._thread = start_thread("watcher", self._run)

    def stop(self) -> None:
        self._stopping.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._thread is not None:
            self._thread.join()

    def _note_final(self, _header: Header) -> None:
        self._final_at = self._node.clock.get_seconds()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # watching is a service: the node goes on without it
                log_alarm("watcher_failed", trace=True, error=repr(error))

    def look(self) -> None:
        """Gather the facts, find what is wrong, tell the log what changed."""
        self.board.update(find_alarms(self.collect()))

    def get_alarms(self) -> tuple[Alarm, ...]:
        """What was wrong at the last look, with what stops the driver now."""
        stopped = self._node.driver.alarm
        rest = [alarm for alarm in self.board.get() if stopped is None or alarm != stopped]
        return tuple(rest if stopped is None else [stopped, *rest])

    def collect(self) -> Facts:
        """The facts at this instant."""
        node, now = self._node, self._node.clock.get_seconds()
        consensus = node.genesis.consensus
        current = self.get_current_set()
        me, following = node.address, node.following.get_status()
        self._was_member |= current.find(me) is not None
        if now - self._standing_at >= STANDING_SECONDS:
            self._standing_at, self._standing = now, self._read_standing(me)
        return Facts(
            uptime_seconds=now - node.started_at,
            since_final_seconds=now - self._final_at,
            stall_seconds=compute_stall_seconds(consensus.heartbeat_ms, consensus.timeout_ms),
            free_bytes=shutil.disk_usage(node.directory).free,
            min_free_bytes=node.config.storage.min_free_bytes,
            stopped=node.driver.alarm,
            reach=self._compute_reach(current, me),
            standing=self._standing,
            has_voted=self._was_member,
            is_signer_outdated=node.driver.is_outdated(),
            set_error=node.driver.get_set_error(),
            follow_refusal=None if following is None else following.refusal,
            skew_seconds=node.driver.progress.clocks.estimate(),
        )

    def get_current_set(self) -> EpochSet:
        """The validators that decide the next block."""
        node = self._node
        return node.store.get_epoch_set(
            compute_epoch(node.get_head().height + 1, node.rules.epoch_blocks)
        )

    def find_reached(self, current: EpochSet) -> set[Address]:
        """Other validators of the set that we reach, and have heard lately."""
        now = self._node.clock.get_seconds()
        return {
            status.peer.address
            for status in self._get_peers()
            if status.is_connected
            and status.seen_at is not None
            and now - status.seen_at < SILENT_SECONDS
            and current.find(status.peer.address) is not None
        }

    def _compute_reach(self, current: EpochSet, me: Address) -> Reach | None:
        if current.find(me) is None:
            return None
        reached = self.find_reached(current) | {me}
        power = sum(member.power for member in current.members if member.address in reached)
        return Reach(power, current.validators.total_power)

    def _read_standing(self, me: Address) -> Standing | None:
        """Our account in Staking; None if it cannot be read now."""
        try:
            state = self._ask("get_standing", "uint8", me)
            is_banned = bool(self._ask("banned", "bool", me))
            return Standing(State(state), is_banned, self._node.get_balance(me))
        except (SteelyardError, CorruptData, DecodingError, ValueError):
            return None

    def _ask(self, name: str, returns: str, me: Address) -> int:
        """The first word of what a view answers."""
        selector = function_signature_to_4byte_selector(f"{name}(address)")
        data = selector + encode(["address"], [me])
        result = self._node.call(CallRequest(to=Address(STAKING_ADDRESS), data=data))
        if result.is_error:
            raise SteelyardError("staking_view", f"{name}: {result.error}")
        return int(decode([returns], result.output)[0])
