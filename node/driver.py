"""The node's only loop: take an event, step the consensus machine, persist, perform the effects.

Crash-only. Everything that consensus must remember is on disk before anything is built on it:
blocks and certificates in the journal, votes in the signer's database, finalized blocks in one
commit. So every fault that may pass (a full disk) is handled like a kill: memory is thrown away and
the session is rebuilt from disk, as at a start. While that lasts production stops, an alarm is up,
and reads go on. The end of an epoch, and blocks that others made final, are handled the same way.

The driver is the thread, what other threads call, and what happens on a fault; what happens between
two faults is in `session`.
"""

import threading
from collections import Counter

from steelyard.chain.epochs import EpochSet
from steelyard.chain.errors import UnavailableBlob
from steelyard.chain.trie import MissingState
from steelyard.chain.types import Address

from .calls import start_thread
from .importing import ForkOrBug
from .inbox import Inbox, Incoming
from .journal import read_journal
from .logs import log_alarm, log_event
from .outbox import Duties, Nobody, NoDuties, Outbox
from .parts import Parts, Progress
from .records import Alarm
from .session import Session
from .store import RECOVERY, CorruptData, StorageFull
from .tree import BlockTree
from .voting import Voter

RETRY_SECONDS = 2.0
"""Pause before a session is rebuilt after a fault that may pass."""
NEVER = float("inf")


class Driver:
    """Runs consensus on one thread, the only one that writes to the chain store."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._inbox, self._held = Inbox(), Inbox()
        self._voter = Voter(parts.signer, parts.address, parts.rules.domain)
        self._stopping = self._woken = self._has_blob = False
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._rebuild_at = float("-inf")
        """When a session is to be made, if there is none."""
        self.outbox: Outbox = Nobody()
        self.duties: Duties = NoDuties()
        self.alarm: Alarm | None = None

    # -- from other threads ------------------------------------------------------------------------
    def start(self) -> None:
        self._thread = start_thread("driver", self._run)

    def stop(self) -> None:
        """End the loop after the effect at hand, and wait for it."""
        with self._inbox.condition:
            self._stopping = True
            self._inbox.condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """There may be work: a transaction came."""
        with self._inbox.condition:
            self._woken = True
            self._inbox.condition.notify_all()

    def wake_for_blob(self) -> None:
        """A blob came: perhaps it is what a block waits for, or work."""
        with self._inbox.condition:
            self._woken = self._has_blob = True
            self._inbox.condition.notify_all()

    def deliver(self, message: Incoming, sender: Address | None = None) -> None:
        """A message from another validator, or final blocks from anybody. Never blocks.

        `sender` is refused (`Outbox.refuse`) if no honest validator sends this.
        """
        self._inbox.put(message, sender)

    @property
    def progress(self) -> Progress:
        """What was done since the process began."""
        return self._parts.progress

    def get_view(self) -> int:
        """The view of consensus; 0 before the start."""
        session = self._session
        return 0 if session is None else session.machine.view

    def count_dropped(self) -> Counter[str]:
        """Messages that found no room, by kind."""
        return self._inbox.count_dropped() + self._held.count_dropped()

    def get_epoch_set(self) -> EpochSet:
        """The validators that decide the block after the finalized head."""
        session = self._session
        if session is not None:
            return session.tree.current
        return BlockTree(self._parts.rules, self._parts.store, self._parts.blobs).current

    def get_rank(self) -> int:
        """How many validators come before us, counted from the leader of this view.

        All of them, if we do not vote.
        """
        session = self._session
        if session is None:
            return 0
        validators = session.epoch_set.validators
        if session.me is None:
            return len(validators)
        leader = validators.get_leader(session.epoch_set.epoch, session.machine.view)
        return (session.me - leader) % len(validators)

    def is_validator(self) -> bool:
        """Do we vote in this epoch?"""
        session = self._session
        return session is not None and session.me is not None

    def count_timeouts(self) -> int:
        """Views in a row, up to the current one, that made nothing final; 0 if all is well."""
        session = self._session
        if session is None:
            return 0
        root, epoch = session.machine.root, session.epoch_set.epoch
        root_view = root.view if root.epoch == epoch else 0
        return max(0, session.machine.view - root_view - 2)

    def is_outdated(self) -> bool:
        """Was the signer's database found not to be the newest of its key?"""
        return self._voter.is_outdated

    def get_set_error(self) -> str | None:
        """Why the validators of the next epoch are the old ones, if Staking could not be read."""
        return self._parts.finalizer.set_error

    # -- the loop ----------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._stopping:
            if not self.advance():
                self._wait()

    def _wait(self) -> None:
        with self._inbox.condition:
            seconds = self.compute_pause()
            is_idle = self._session is None or self._inbox.is_empty()
            if is_idle and not self._stopping and not self._woken and seconds > 0:
                self._inbox.condition.wait(min(seconds, threading.TIMEOUT_MAX))
            self._woken = False

    def compute_pause(self) -> float:
        """Seconds until something is due, if nothing comes before."""
        if self._session is not None:
            return self._session.compute_pause()
        return self._rebuild_at - self._parts.clock.get_seconds()

    def sweep(self) -> None:
        """Before anything can declare or send blobs: delete what a kill left over."""
        tree = BlockTree(self._parts.rules, self._parts.store, self._parts.blobs)
        read_journal(self._parts.store, tree)
        self._parts.finalizer.sweep(tree)

    def advance(self) -> bool:
        """Do the next thing that is due. False if there is nothing to do before a pause."""
        try:
            return self._advance()
        except (StorageFull, UnavailableBlob) as error:
            self._fail(error.code, error.message, RETRY_SECONDS)
        except (CorruptData, ForkOrBug) as error:
            self._fail(error.code, error.message)
        except MissingState as error:
            self._fail(CorruptData.code, f"{error.message}; {RECOVERY}")
        except Exception as error:
            # Ours to fix. Reads go on; guessing on with consensus would not be safe.
            self._fail("driver_failed", repr(error), is_bug=True)
        return False

    def _advance(self) -> bool:
        session = self._session
        if session is None:
            if self._parts.clock.get_seconds() < self._rebuild_at:
                return False
            self._begin()
            return True
        if session.is_over():
            session.close()
            self._session = None
            return True
        if self._has_blob:
            self._has_blob = False
            session.retry()
        has_worked = session.advance()
        self._observe(session)
        return has_worked

    def _begin(self) -> None:
        session = Session(
            self._parts, self.outbox, self.duties, self._voter, self._inbox, self._held
        )
        self._session = session
        log_event(
            "consensus_started",
            height=session.tree.root.height,
            epoch=session.epoch_set.epoch,
            view=session.machine.view,
            votes=session.me is not None,
        )
        self._observe(session)

    def _observe(self, session: Session) -> None:
        """An alarm is up as long as there is a reason."""
        alarm = session.find_alarm()
        if alarm is not None:
            self._raise_alarm(alarm)
        elif self.alarm is not None:
            log_event("production_resumed", code=self.alarm.code)
            self.alarm = None

    def _fail(
        self, code: str, message: str, retry_seconds: float = NEVER, *, is_bug: bool = False
    ) -> None:
        """Throw memory away; begin again later, or never."""
        self._session = None
        self._rebuild_at = self._parts.clock.get_seconds() + retry_seconds
        self._raise_alarm(Alarm(code, message), is_bug=is_bug)

    def _raise_alarm(self, alarm: Alarm, *, is_bug: bool = False) -> None:
        if self.alarm is None or self.alarm.code != alarm.code:
            log_alarm("production_stopped", trace=is_bug, code=alarm.code, message=alarm.message)
        self.alarm = alarm
