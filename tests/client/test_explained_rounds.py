"""Rounds of the genuine contracts, told: the words give what the chain wrote down and paid."""

from collections.abc import Iterator

import pytest

from steelyard.chain.rules import Flag
from steelyard.client.commands.rounds import format_explanation
from steelyard.client.events import get_events
from steelyard.client.explain import Explanation, explain_round
from steelyard.client.records import RoundState

from . import story as stories
from .quiet import ADDRESSES, ONE, QuietChain

pytestmark = pytest.mark.slow

TOLD = ("late", "momentum", "krum", "capped", "spoilt", "drawn", "short", "worthless", "extended",
        "clipped", "trimmed", "staked")  # fmt: skip
TASKS = {name: number for number, name in enumerate(TOLD, 1)}
ROUNDS = {name: stories.AUDITED.get(name, 1) for name in TOLD}


def tell_clipped(chain: QuietChain, task: int) -> None:
    """Every update is above so small a bound."""
    chain.publish(task, 0, 1, rule=(1, 1, ONE, 4_096, 0))
    chain.mine()
    chain.play(task, 1, {0: stories.NEAR[0], 1: stories.FAR})


def tell_staked(chain: QuietChain, task: int) -> None:
    """Weighted by stake, one silent, nobody above half."""
    chain.publish(task, 0, 1, 2, min_clients=3, weighting=1, rule=(0, 0, ONE // 2, 4_096, 0))
    chain.mine()
    stories.let_some_be_silent(chain, task, 1, 1)


@pytest.fixture(scope="module")
def chain() -> Iterator[QuietChain]:
    told = QuietChain()
    for name, task in TASKS.items():
        tell = globals().get(f"tell_{name}") or getattr(stories, f"tell_{name}")
        tell(told, task)
        told.mine()
    return told


def explain(chain: QuietChain, name: str) -> tuple[Explanation, str]:
    told = explain_round(chain.open_rpc(), TASKS[name], ROUNDS[name])
    return told, format_explanation(told, details=True)


@pytest.mark.parametrize("name", TOLD)
def test_every_round_adds_up_and_no_share_is_unexplained(chain: QuietChain, name: str) -> None:
    told, text = explain(chain, name)
    assert "but the record says" not in text
    (settled,) = get_events(chain.open_rpc(), TASKS[name], ["Settled"], round_number=ROUNDS[name])
    books = settled.values
    paid = sum(part.paid or 0 for part in told.parts)
    assert (paid, books["pool"]) == (books["paid"], chain.get_round(*where(name))["pool"])
    if told.payment is not None:
        assert (told.payment.paid, told.payment.platform) == (books["paid"], books["platform"])
        assert told.payment.dust >= 0


def where(name: str) -> tuple[int, int]:
    return TASKS[name], ROUNDS[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("late", ["samples << 20 * 524288 >> 20 = 15728640, 1 round late", "the mean, 1 late"]),
        ("momentum", ["step    v = mean + 3686/4096 * v before (baf", "base + 2048/4096 * v"]),
        ("krum", ["0: too far from the others", "0: the same update as another's"]),
        ("capped", ["is above the cap: 419430 of", "what those above the cap leave", "fee  "]),
        ("spoilt", ["others did not", "committed, never revealed, lost", "the silent count too"]),
        ("staked", ["stake of ", "the silent count too"]),
        ("drawn", ["3 of 6 who were ready: max(2, ceil(6 * 524288 / 1048576) = 3) +"]),
        ("short", ["1 committed, 0 revealed", "committed, too few others did"]),
        ("worthless", ["3 committed, 2 revealed", "skipped"]),
        ("extended", ["the round was extended"]),
        ("clipped", ["effect  isqrt(", "clipped to the norm, paid by its share"]),
        ("trimmed", ["1 << 20 = 1048576"]),
    ],
)  # fmt: skip
def test_what_is_special_about_a_round_is_said(
    chain: QuietChain, name: str, words: list[str]
) -> None:
    _, text = explain(chain, name)
    for word in words:
        assert word in text


def test_who_is_excluded_a_copy_or_silent_is_paid_nothing(chain: QuietChain) -> None:
    told, _ = explain(chain, "krum")
    parts = {part.address: part for part in told.parts}
    assert parts[ADDRESSES[4]].weighing.flags & Flag.EXCLUDED
    copies = [parts[ADDRESSES[one]] for one in (0, 5)]
    assert sorted(bool(part.weighing.flags & Flag.DUPLICATE) for part in copies) == [False, True]
    assert [part.paid == 0 for part in told.parts] == [
        bool(part.weighing.flags & (Flag.EXCLUDED | Flag.DUPLICATE)) for part in told.parts
    ]
    told, _ = explain(chain, "spoilt")
    assert told.state is RoundState.SKIPPED
    assert [part.paid is None for part in told.parts] == [False, True, False]
    assert told.parts[1].burned > 0
    assert [part.steps[0] for part in told.parts if part.steps] == [
        f"weight  {rows} samples << 20 = {rows << 20}" for rows in (10, 30)
    ]
