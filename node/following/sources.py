"""The nodes that we follow: what each claims, how it behaved, and when it may be asked again.

A source that does not answer is left alone for a moment; one whose answers were wrong, for longer.
Pauses double with every further failure. One that takes its time is left alone for at least as
long, whatever it then says: else a liar that sends a right byte now and then could keep us from
the others for ever. Nothing a source says of itself is believed: its head only
decides whom to ask first.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Hash, Height

from ..logs import log_event
from .fetcher import Answer, Fetcher, Unreachable, check_url

SILENT_SECONDS: Final = 1.0
"""First pause after no answer."""
WRONG_SECONDS: Final = 60.0
"""First pause after a wrong one."""
MAX_PAUSE_SECONDS: Final = 3_600.0
MAX_SILENT_SECONDS: Final = 60.0
SLOW_SECONDS: Final = 5.0
SLOW_RATE: Final = 16 * 2**10
"""An answer that took longer, with fewer bytes a second than this, is slow."""
MAX_SLOW_DOUBLINGS: Final = 2
HEAD_SECONDS: Final = 10.0
HEAD_BYTES: Final = 4_096
ERROR_BYTES: Final = 4_096
ASK_SECONDS: Final = 30.0
ATTEMPTS: Final = 5
HTTP_OK: Final = 200
HTTP_MISSING: Final = 404
HTTP_UNAVAILABLE: Final = 503
TOO_LARGE: Final = "segment_too_large"
EXHAUSTED: Final = "sources_exhausted"

Read = TypeVar("Read")


class SourceWrong(SteelyardError):
    """A source answered something that cannot be true."""


class SourceLacks(SteelyardError):
    """A source does not have what it was asked for; it may be behind, or have let it go."""


class TooLarge(SteelyardError):
    """A source has what it was asked for, and it does not fit into one answer."""


@dataclass(frozen=True, slots=True)
class RemoteHead:
    """What a source says about itself."""

    genesis_hash: Hash
    height: Height
    hash: Hash
    oldest_state: Height


@dataclass(slots=True)
class Source:
    """One node. `quiet_until` is in monotonic seconds; `seconds` took the last exchange."""

    url: str
    head: RemoteHead | None = None
    failures: int = 0
    quiet_until: float = float("-inf")
    seconds: float = 0.0
    trouble: str = ""
    """Why it was set aside last."""
    trouble_at: float = 0.0
    """When, in monotonic seconds."""
    is_trouble_its_head: bool = False
    """Was its head the trouble? Then a head is all it needs to give to be well again."""


class Sources:
    """The nodes of `[follow] nodes`, and the rules for asking them. One thread, but `describe`."""

    def __init__(
        self,
        urls: Sequence[str],
        fetcher: Fetcher,
        genesis_hash: Hash,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives monotonic seconds. Raises SteelyardError follow_url."""
        self.all = [Source(check_url(url)) for url in dict.fromkeys(urls)]
        self._fetcher, self._genesis_hash, self._clock = fetcher, genesis_hash, clock

    def get_available(self) -> list[Source]:
        """Those that may be asked now: the highest first, among equals the more reliable."""
        ready = [one for one in self.all if self.is_available(one)]
        return sorted(ready, key=lambda one: (-(one.head.height if one.head else 0), one.failures))

    def is_available(self, source: Source) -> bool:
        """May it be asked now?"""
        return source.quiet_until <= self._clock()

    def look(self) -> Source | None:
        """Ask all that may be asked for their heads; return the highest. Raises Stopped."""
        for source in self.get_available():
            try:
                self._look_at(source)
            except SteelyardError as error:
                self.set_aside(source, error)
                source.is_trouble_its_head = True
            else:
                if not self.is_available(source):
                    source.is_trouble_its_head = True  # it came, and took its time
                elif source.is_trouble_its_head:
                    source.trouble = ""
        heads = [one for one in self.get_available() if one.head is not None]
        return heads[0] if heads else None

    def _look_at(self, source: Source) -> None:
        body = self.get(source, "/chain/head", HEAD_BYTES, HEAD_SECONDS)
        head = parse_head(body)
        if head.genesis_hash != self._genesis_hash:
            raise SourceWrong(
                "source_chain", f"it is on the chain with genesis 0x{head.genesis_hash.hex()}"
            )
        source.head = head

    def get(self, source: Source, path: str, limit: int, seconds: float) -> bytes:
        """The body of a 200. Raises Unreachable, SourceLacks, TooLarge, Stopped."""
        limit = max(limit, ERROR_BYTES)
        return self._exchange(
            source, path, lambda url: self._fetcher.get(url, limit=limit, seconds=seconds)
        )

    def post(
        self,
        source: Source,
        path: str,
        body: bytes,
        limit: int,
        seconds: float,
        kind: str = "application/octet-stream",
    ) -> bytes:
        """The body of a 200. Raises Unreachable, SourceLacks, TooLarge, Stopped."""
        limit = max(limit, ERROR_BYTES)
        return self._exchange(
            source,
            path,
            lambda url: self._fetcher.post(url, body, kind=kind, limit=limit, seconds=seconds),
        )

    def _exchange(self, source: Source, path: str, send: Callable[[str], Answer]) -> bytes:
        """What comes is used; but if it was slow, others come first for a while."""
        started = self._clock()
        try:
            answer = send(source.url + path)
        finally:
            source.seconds = self._clock() - started
        if source.seconds > SLOW_SECONDS and len(answer.body) < SLOW_RATE * source.seconds:
            reason = f"{len(answer.body)} bytes in {source.seconds:.0f} s"
            self.set_aside(source, Unreachable("follow_timeout", reason))
        return read_answer(answer, path)

    def ask(
        self,
        path: str,
        limit: int,
        read: Callable[[bytes], Read],
        *,
        seconds: float = ASK_SECONDS,
        attempts: int = ATTEMPTS,
    ) -> Read:
        """What `read` makes of the first answer that it does not refuse.

        Sources that are silent are asked again, a few times. Raises SteelyardError
        sources_exhausted; Stopped.
        """
        for attempt in range(attempts):
            for source in self.get_available():
                try:
                    found = read(self.get(source, path, limit, seconds))
                except SourceLacks as error:
                    source.trouble = str(error)  # nothing against it for the next question
                except SteelyardError as error:
                    self.set_aside(source, error)
                else:
                    self.praise(source)
                    return found
            if attempt + 1 < attempts:
                self._fetcher.wait(SILENT_SECONDS)
        said = "; ".join(f"{one.url}: {one.trouble}" for one in self.all)
        raise SteelyardError(EXHAUSTED, f"no source gives {path}: {said}")

    def set_aside(self, source: Source, error: SteelyardError) -> None:
        """Leave it alone for a while: longer when it lied than when it was silent or behind."""
        is_wrong = not isinstance(error, Unreachable | SourceLacks)
        first, limit = (
            (WRONG_SECONDS, MAX_PAUSE_SECONDS) if is_wrong else (SILENT_SECONDS, MAX_SILENT_SECONDS)
        )
        pause = min(first * 2 ** min(source.failures, 16), limit)
        pause = max(pause, source.seconds * 2 ** min(source.failures, MAX_SLOW_DOUBLINGS))
        source.failures, source.seconds = source.failures + 1, 0.0
        source.quiet_until = self._clock() + pause
        source.head = None
        trouble = f"{error.code}: {error.message}"
        if source.trouble != trouble:
            log_event(
                "source_set_aside",
                url=source.url,
                code=error.code,
                message=error.message[:200],
                seconds=pause,
            )
        source.trouble, source.trouble_at = trouble[:200], self._clock()
        source.is_trouble_its_head = False

    def describe(self, source: Source) -> str:
        """The height it claims, and for how long it has given no reason to doubt it.

        From any thread: each field is read once, as it may change meanwhile.
        """
        head, trouble = source.head, source.trouble
        if head is None:
            return trouble or "asked"
        if not trouble:
            return str(head.height)
        return f"{head.height}; {self._clock() - source.trouble_at:.0f} s ago {trouble}"

    def praise(self, source: Source) -> None:
        """It gave something that was checked and right; in good time, unless it is set aside."""
        if self.is_available(source):
            source.failures, source.trouble = 0, ""


def read_answer(answer: Answer, path: str) -> bytes:
    if answer.status == HTTP_OK:
        return answer.body
    if answer.status == HTTP_MISSING:
        raise SourceLacks("source_lacks", f"it does not have {path}")
    if answer.status == HTTP_UNAVAILABLE and read_code(answer.body) == TOO_LARGE:
        raise TooLarge(TOO_LARGE, f"{path} does not fit into one answer")
    raise Unreachable("follow_unreachable", f"HTTP {answer.status} for {path}")


def read_code(body: bytes) -> object:
    """The code in a refusal, if it is one of ours."""
    try:
        refusal = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return refusal.get("error") if isinstance(refusal, dict) else None


def parse_head(body: bytes) -> RemoteHead:
    """Read /chain/head strictly. Raises SourceWrong."""
    try:
        facts = json.loads(body)
        return RemoteHead(
            genesis_hash=read_hash(facts["genesis_hash"]),
            height=read_height(facts["height"]),
            hash=read_hash(facts["hash"]),
            oldest_state=read_height(facts["oldest_state"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SourceWrong("source_malformed", "its /chain/head is not one of ours") from None


def read_hash(value: object) -> Hash:
    if not isinstance(value, str) or not value.startswith("0x") or len(value) != 66:
        raise ValueError("no hash")
    return Hash(bytes.fromhex(value[2:]))


def read_height(value: object) -> Height:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("no height")
    return Height(value)
