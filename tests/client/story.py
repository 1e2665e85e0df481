"""Rounds of every kind, each told in a task of its own on one quiet chain."""

from collections.abc import Mapping

from tests.contracts.player import force_split

from .quiet import KEEPER, ONE, PLATFORM, PUBLISHER, QuietChain

NEAR: Mapping[int, list[int]] = {0: [3, 1, 4, 1, 5, 9], 1: [2, 7, 1, 8, 2, 8], 2: [1] * 6}
FAR = [120, -120, 120, -120, 120, -120]
STORY = ("late", "paged", "momentum", "trimmed", "krum", "capped", "silent", "spoilt", "drawn",
         "short", "worthless", "extended", "refunded", "hurried", "newcomer", "staked",
         "topped")  # fmt: skip
TASKS = {name: number for number, name in enumerate(STORY, 1)}
AUDITED = {
    name: 2 if name in ("late", "momentum", "worthless", "newcomer", "topped") else 1
    for name in STORY
}
"""The round of each task that is looked at."""


def tell_late(chain: QuietChain, task: int) -> None:
    """Client 2 misses round 1, and hands its update in a round later, at half its weight."""
    chain.publish(task, 0, 1, 2, max_staleness=2, staleness_discount=ONE // 2)
    chain.mine()
    for client in (0, 1):
        chain.commit(task, 1, client, NEAR[client])
    chain.mine()
    chain.reveal(task, 1, 0, 1)
    chain.mine(100)
    chain.close(task, 1)
    chain.mine()
    for client in (0, 1):
        chain.commit(task, 2, client, NEAR[client])
    chain.commit(task, 2, 2, NEAR[2], origin=1)
    chain.reveal(task, 2, 0, 1, 2)
    chain.mine()
    chain.close(task, 2)


def tell_paged(chain: QuietChain, task: int) -> None:
    """One page of measures and two of values, then the model."""
    with force_split(1, 2):
        chain.publish(task, 0, 1, rule=(1, 2**20, ONE, 4_096, 0))
        chain.mine()
    for client in (0, 1):
        chain.commit(task, 1, client, NEAR[client])
    chain.reveal(task, 1, 0, 1)
    chain.mine()
    for _ in range(3):
        chain.close(task, 1)
        chain.mine()
    chain.close(task, 1)


def tell_momentum(chain: QuietChain, task: int) -> None:
    chain.publish(task, 0, 1, rule=(0, 0, ONE, 2_048, 3_686))
    chain.mine()
    for number in (1, 2):
        chain.play(task, number, {0: NEAR[0], 1: NEAR[1]})


def tell_trimmed(chain: QuietChain, task: int) -> None:
    chain.publish(task, 0, 1, 2, rule=(2, 1, ONE, 4_096, 0), weighting=2, min_clients=3)
    chain.mine()
    chain.play(task, 1, {**NEAR, 2: FAR})


def tell_krum(chain: QuietChain, task: int) -> None:
    """Client 4 is far from all others; client 5 sends what client 0 does."""
    chain.publish(task, *range(6), rule=(3, 1, ONE, 4_096, 0), min_clients=5)
    chain.mine()
    chain.play(task, 1, {**NEAR, 3: [2] * 6, 4: FAR, 5: NEAR[0]})


def tell_capped(chain: QuietChain, task: int) -> None:
    """Of 30, 60 and 110 samples, the largest counts as 0.4; a tenth is the platform's."""
    terms = {"rule": (0, 0, ONE * 2 // 5, 4_096, 0), "platform": PLATFORM}
    chain.publish(task, 2, 5, 7, **terms, platform_share=ONE // 10)
    chain.mine()
    chain.play(task, 1, {2: NEAR[0], 5: NEAR[1], 7: NEAR[2]})


def let_some_be_silent(chain: QuietChain, task: int, number: int, *silent: int) -> None:
    """All three commit; these say nothing more."""
    for client in NEAR:
        chain.commit(task, number, client, NEAR[client])
    chain.reveal(task, number, *(client for client in NEAR if client not in silent))
    chain.mine()
    chain.close(task, number)
    chain.mine(100)


def tell_silent(chain: QuietChain, task: int) -> None:
    """Client 2 loses its bond of 600; most of its stake is the publisher's."""
    chain.publish(task, 0, 1, 2, sponsored={2: 10_500})
    chain.mine()
    let_some_be_silent(chain, task, 1, 2)


def tell_spoilt(chain: QuietChain, task: int) -> None:
    """A platform would have had a tenth of a model."""
    terms = {"platform": PLATFORM, "platform_share": ONE // 10}
    chain.publish(task, 0, 1, 2, min_clients=3, **terms)
    chain.mine()
    let_some_be_silent(chain, task, 1, 1)


def tell_drawn(chain: QuietChain, task: int) -> None:
    chain.publish(task, *range(6), fraction_fit=ONE // 2)
    chain.mine()
    drawn = chain.get_round(task, 1)["drawn"]
    chain.play(task, 1, {one: NEAR[one % 3] for one in range(6) if drawn >> one & 1})


def tell_short(chain: QuietChain, task: int) -> None:
    chain.publish(task, 0, 1)
    chain.mine()
    chain.commit(task, 1, 0, NEAR[0])
    chain.mine()
    chain.close(task, 1)
    chain.mine(100)


def tell_worthless(chain: QuietChain, task: int) -> None:
    """All updates of round 2 are late and count for nothing; client 2 does not show its own."""
    chain.publish(task, 0, 1, 2, max_staleness=1, staleness_discount=0)
    chain.mine()
    chain.close(task, 1)
    chain.mine(100)
    for client in NEAR:
        chain.commit(task, 2, client, NEAR[client], origin=1)
    chain.reveal(task, 2, 0, 1)
    chain.mine()
    chain.close(task, 2)
    chain.mine(100)


def tell_extended(chain: QuietChain, task: int) -> None:
    chain.publish(task, 0, 1, on_failed_quorum=1, max_extensions=2)
    chain.mine()
    chain.close(task, 1)
    chain.mine(100)
    chain.play(task, 1, {0: NEAR[0], 1: NEAR[1]})


def tell_refunded(chain: QuietChain, task: int) -> None:
    """Nobody reveals, and the task ends."""
    chain.publish(task, 0, 1, 2, min_clients=3, on_failed_quorum=2)
    chain.mine()
    let_some_be_silent(chain, task, 1, 0, 1, 2)


def tell_hurried(chain: QuietChain, task: int) -> None:
    """All of a round in one block, with stakes, funds and a claim around it."""
    chain.publish(task, 0, 1, bond=0)
    chain.mine()
    for client in (0, 1):
        chain.commit(task, 1, client, NEAR[client])
    chain.send(3, "Tasks", "join", task, 5, value=20_000)
    chain.reveal(task, 1, 0, 1)
    chain.send(PUBLISHER, "Tasks", "fund", task, value=999)
    chain.close(task, 1)
    chain.send(0, "Tasks", "add_stake", task, value=70)
    chain.send(KEEPER, "Tasks", "claim", task)
    chain.send(1, "Tasks", "leave", task)
    chain.mine()


def tell_newcomer(chain: QuietChain, task: int) -> None:
    """Client 4 takes the seat that client 0 gave up."""
    chain.publish(task, 0, 1, 2)
    chain.mine()
    chain.play(task, 1, NEAR)
    chain.send(0, "Tasks", "leave", task)
    chain.send(4, "Tasks", "join", task, 50, value=20_000)
    for client in (1, 2):
        chain.commit(task, 2, client, NEAR[client])
    chain.mine()
    chain.reveal(task, 2, 1, 2)
    chain.mine()
    chain.close(task, 2)


def tell_staked(chain: QuietChain, task: int) -> None:
    """Stakes of 10,700, 10,800 and 10,900 count, nobody above a third. Client 1 stays silent, and
    what it adds after its commitment does not count."""
    chain.publish(task, 0, 1, 2, min_clients=3, weighting=1, rule=(0, 0, 1, 4_096, 0))
    chain.mine()
    for client in NEAR:
        chain.commit(task, 1, client, NEAR[client])
    chain.send(1, "Tasks", "add_stake", task, value=50_000)
    chain.reveal(task, 1, 0, 2)
    chain.mine()
    chain.close(task, 1)
    chain.mine(100)


def tell_topped(chain: QuietChain, task: int) -> None:
    """Client 2 has lost so much by its silence that what it commits to is covered only by the
    reveal: by the very wei."""
    chain.publish(task, 0, 1, 2, bond=700)
    chain.mine()
    let_some_be_silent(chain, task, 1, 2)
    for client in NEAR:
        chain.commit(task, 2, client, NEAR[client])
    chain.send(2, "Tasks", "add_stake", task, value=100)
    chain.reveal(task, 2, *NEAR)
    chain.mine()
    chain.close(task, 2)
    chain.mine()


def tell_story() -> QuietChain:
    """Tell all of it, one task after another."""
    chain = QuietChain()
    for name, task in TASKS.items():
        globals()[f"tell_{name}"](chain, task)
        chain.mine()
    return chain
