"""When a leader proposes, and when a view has lasted too long (rule 2). No clock: `now` is given.

Three instants steer a view, in milliseconds. It is *entered*. Its block is *due*: at once if there
is work, else at the heartbeat. It *expires* a timeout after the block was due or has come, so that
an idle leader does not look like a dead one.
"""

from ..params import MAX_TIMEOUT_DOUBLINGS
from ..types import View
from .views import Views


def compute_timeout_ms(base_ms: int, unfinalized_views: int) -> int:
    """Return the time a view gets from proposal to certificate.

    It doubles with every view in a row that finalized nothing, up to a limit: so that it exceeds
    what the network really takes, some day. `base_ms` is three message delays and the execution.
    """
    return base_ms << min(max(unfinalized_views, 0), MAX_TIMEOUT_DOUBLINGS)


class Pacing:
    """The three instants of the current view, and whether work is waiting."""

    def __init__(self, timeout_ms: int, heartbeat_ms: int, views: Views) -> None:
        assert timeout_ms > 0, "a view needs time"
        assert heartbeat_ms > 0, "a validator alone would make blocks without end"
        self._timeout_ms, self._heartbeat_ms = timeout_ms, heartbeat_ms
        self._views = views
        self._view = View(0)
        self._has_work = False
        self._entered_at = self.due_at = self.expires_at = 0

    def enter(self, view: View, now: int) -> None:
        """A view begins. If the one before made a block, it took the work: the driver repeats."""
        self._view, self._entered_at = view, now
        if self._views.get(View(view - 1)).get_certified_hash() is not None:
            self._has_work = False
        self.relax(now)

    def relax(self, now: int) -> None:
        """Set the instants anew: the view began, or everything before it became final."""
        self.due_at = self._entered_at + self._compute_pause()
        self.expires_at = max(self.due_at, now) + self._get_timeout()

    def hurry(self, now: int) -> None:
        """Work has come: the leader proposes now, and the others expect that."""
        if not self._has_work:
            self._has_work = True
            self.due_at = min(self.due_at, now)
            self.expect(now)

    def expect(self, now: int) -> None:
        """There is a proposal: the certificate has to follow."""
        self.expires_at = min(self.expires_at, now + self._get_timeout())

    def restart(self, now: int) -> None:
        """We voted for a block, or waited in vain and repeated ourselves: wait once more."""
        self.expires_at = now + self._get_timeout()

    def _compute_pause(self) -> int:
        """Return how long after entering the block is due.

        Not at all if there is work, or if the view before came to nothing: its block was due. A
        block that still awaits finality is a reason to go on, but that mostly comes by itself.
        """
        before = self._views.get_parent_view(self._view)
        if self._has_work or before < self._view - 1:
            return 0
        if before == self._views.root_view:
            return self._heartbeat_ms
        return min(self._timeout_ms, self._heartbeat_ms)

    def _get_timeout(self) -> int:
        # The view just before this one is usually about to be finalized: it does not count.
        unfinalized = self._view - self._views.root_view - 2
        return compute_timeout_ms(self._timeout_ms, unfinalized)
