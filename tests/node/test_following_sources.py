"""Sources that take their time cannot keep a node from the others; what is said of them is so."""

import json
from typing import cast

import pytest

from steelyard.chain.types import Hash
from steelyard.node.following.fetcher import Answer, Unreachable
from steelyard.node.following.sources import (
    MAX_SLOW_DOUBLINGS,
    RemoteHead,
    Source,
    Sources,
    SourceWrong,
)

SLOW, FAST = "http://slow", "http://fast"


class World:
    """Two sources without sockets: `delays` are the seconds that each takes to answer."""

    def __init__(self, delays: dict[str, float], size: int = 10) -> None:
        self.now, self.delays, self.size = 0.0, delays, size
        self.sources = Sources(list(delays), self, Hash(bytes(32)), lambda: self.now)  # type: ignore[arg-type]

    def get(self, url: str, *, limit: int, seconds: float) -> Answer:
        assert limit
        delay = self.delays[url.removesuffix("/x")]
        self.now += min(delay, seconds)
        if delay > seconds:
            raise Unreachable("follow_timeout", "no answer")
        return Answer(200, bytes(self.size))

    def ask(self, source: Source) -> None:
        """What every caller does."""
        try:
            self.sources.get(source, "/x", 100, 60)
        except Unreachable as error:
            self.sources.set_aside(source, error)
        else:
            self.sources.praise(source)

    def list_available(self) -> list[str]:
        return [one.url for one in self.sources.get_available()]


@pytest.mark.parametrize("delay", [59.0, 1_000.0])
def test_a_slow_source_gets_a_small_part_of_our_time(delay: float) -> None:
    world = World({SLOW: delay, FAST: 0.01})
    slow, fast = world.sources.all
    wasted = 0.0
    while world.now < 4 * 3_600:
        if SLOW in world.list_available():
            before = world.now
            world.ask(slow)
            wasted += world.now - before
        assert world.list_available() == [FAST]
        world.ask(fast)
        world.now += 1
    assert wasted < world.now / 2**MAX_SLOW_DOUBLINGS


def test_a_large_answer_may_take_long() -> None:
    world = World({SLOW: 50.0}, size=2**20)
    world.ask(world.sources.all[0])
    assert world.list_available() == [SLOW]


def test_a_source_that_became_fast_again_is_trusted_again() -> None:
    world = World({SLOW: 59.0})
    (source,) = world.sources.all
    world.ask(source)
    assert world.list_available() == []
    world.now, world.delays[SLOW] = world.now + 60, 0.01
    world.ask(source)
    assert (world.list_available(), source.failures, source.trouble) == ([SLOW], 0, "")


# -- what is said of them --------------------------------------------------------------------------
class Heads:
    """A source that gives its head after `delay`, or does not answer while `is_up` is False."""

    def __init__(self) -> None:
        self.now, self.delay, self.is_up = 0.0, 0.0, True
        self.sources = Sources([FAST], self, Hash(bytes(32)), lambda: self.now)  # type: ignore[arg-type]

    def get(self, url: str, *, limit: int, seconds: float) -> Answer:
        self.now += self.delay
        if not self.is_up:
            raise Unreachable("follow_unreachable", "All connection attempts failed")
        zero = "0x" + 64 * "0"
        facts = {"genesis_hash": zero, "height": 7, "hash": zero, "oldest_state": 0}
        return Answer(200, json.dumps(facts).encode())


def test_a_source_that_gives_its_head_again_is_no_longer_said_to_be_silent() -> None:
    world = Heads()
    (source,) = world.sources.all
    assert world.sources.describe(source) == "asked"
    world.is_up = False
    assert world.sources.look() is None
    assert world.sources.describe(source).startswith("follow_unreachable: All")
    world.now, world.is_up = 2.0, True
    assert world.sources.look() is source
    assert world.sources.describe(source) == "7"


def test_a_source_that_gives_its_head_in_good_time_again_is_no_longer_said_to_be_slow() -> None:
    world = Heads()
    (source,) = world.sources.all
    world.delay = 9.0
    assert world.sources.look() is None
    assert "0 s ago follow_timeout" in world.sources.describe(source)
    world.now, world.delay = 60.0, 0.0
    assert world.sources.look() is source
    assert world.sources.describe(source) == "7"


def test_a_source_that_lied_is_not_well_because_it_gives_its_head() -> None:
    world = Heads()
    (source,) = world.sources.all
    world.sources.set_aside(source, SourceWrong("source_block", "no block"))
    world.now = 1_834.0
    assert world.sources.look() is source
    assert world.sources.describe(source) == "7; 1834 s ago source_block: no block"
    world.sources.praise(source)
    assert world.sources.describe(source) == "7"


def test_a_source_can_be_described_while_its_own_thread_sets_it_aside() -> None:
    world = Heads()
    (source,) = world.sources.all
    assert world.sources.look() is source
    heads = [source.head, None]

    class Changing:
        """The same source, whose head is gone when it is looked at again."""

        trouble, trouble_at = "", 0.0

        @property
        def head(self) -> RemoteHead | None:
            return heads.pop(0)

    assert world.sources.describe(cast(Source, Changing())) == "7"
