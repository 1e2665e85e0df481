"""Token buckets: how much one peer may send before its messages are dropped unread."""

from dataclasses import dataclass


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
