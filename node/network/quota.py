"""Token buckets: how much one peer may send before its messages are dropped unread."""

from dataclasses import dataclass
from typing import Final

from .wire import MAX_MESSAGE_BYTES, WEIGHTS

FAULTS: Final = 16
FAULTS_PER_SECOND: Final = 0.2
LEAST_BURST: Final = 2 * max(WEIGHTS.values())
LARGEST_BURST: Final = 2 * max(MAX_MESSAGE_BYTES.values())


@dataclass(slots=True)
class Bucket:
    """Fills with `rate` tokens a second up to `burst`. Not thread-safe: one thread owns it."""

    rate: float
    burst: float
    tokens: float
    filled_at: float

    @classmethod
    def create(cls, rate: float, burst: float, now: float) -> "Bucket":
        """A full one. `now` is in seconds of a monotonic clock."""
        return cls(rate, burst, burst, now)

    def has_taken(self, amount: float, now: float) -> bool:
        """Take `amount` tokens if they are there; whether they were."""
        self.tokens = min(self.burst, self.tokens + self.rate * max(0.0, now - self.filled_at))
        self.filled_at = now
        if amount > self.tokens:
            return False
        self.tokens -= amount
        return True


@dataclass(slots=True)
class Quota:
    """What one peer may send on one lane. A message that does not fit is dropped unread.

    A peer whose messages keep breaking rules, more than `FAULTS` at once or `FAULTS_PER_SECOND`
    for long, is muted: nothing of it is read, and its connections are closed, until `muted_until`.
    """

    messages: Bucket
    size: Bucket
    faults: Bucket
    muted_until: float = 0.0

    @classmethod
    def create(cls, messages_per_second: float, bytes_per_second: float, now: float) -> "Quota":
        """With room for bursts of two seconds, and for two of the largest messages."""
        return cls(
            Bucket.create(messages_per_second, max(2 * messages_per_second, LEAST_BURST), now),
            Bucket.create(bytes_per_second, max(2 * bytes_per_second, LARGEST_BURST), now),
            Bucket.create(FAULTS_PER_SECOND, FAULTS, now),
        )

    def is_muted(self, now: float) -> bool:
        return now < self.muted_until

    def has_room(self, size: int, now: float, weight: int = 1) -> bool:
        """Count a message of `size` bytes; whether it is within the limits."""
        return self.messages.has_taken(weight, now) and self.size.has_taken(size, now)

    def add_fault(self, seconds: float, now: float) -> bool:
        """Count a broken rule; whether that mutes the peer, for `seconds`, from now on."""
        if self.is_muted(now) or self.faults.has_taken(1, now):
            return False
        self.muted_until = now + seconds
        return True
