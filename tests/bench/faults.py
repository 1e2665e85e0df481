"""Four real validators under kill -9 and partition, and one of them that cheats.

Nothing is simulated: processes, disks and sockets are what operators have. A partition is made by
cutting the TCP relays through which each validator reaches each other one.
"""

import os
import random
import time
from dataclasses import dataclass, field, replace

from steelyard.chain.consensus.votes import Offence
from steelyard.node.config import CONFIG_FILE, encode_config, load_config
from steelyard.node.localnet import Localnet

from .cluster import (
    count_events,
    count_slashed,
    find_validators,
    get_height,
    is_in_one,
    is_voting,
    run_cluster,
    say,
    wait_until,
)
from .equivocation import watch_equivocation
from .relays import Relays
from .timing import Measurement
from .training import CLIENTS, Training, train_on

KILLS = int(os.environ.get("STEELYARD_KILLS", "50"))
PARTITION_SECONDS = float(os.environ.get("STEELYARD_PARTITION_SECONDS", "60"))
MAX_DOWN_SECONDS = 2.0
MAX_UP_SECONDS = 3.0
KILLED_AGAIN = 0.2
"""Part of the kills that hit a validator once more while it comes back."""
MAX_START_SECONDS = 4.0
OFFENCES = ("validators_misbehave", "evidence_against_us", "signer_outdated")
"""What a validator's log says when somebody, or its own key, contradicted itself."""
REFUSAL = "vote_refused code=vote_conflict"
"""The signer's database kept the rest of the node from a double vote."""


def run() -> list[Measurement]:
    """Return a row for the kills, one for each partition and one for each kind of cheat."""
    return [measure_kills(), *measure_partitions(), measure_cheats()]


# -- kill -9 ---------------------------------------------------------------------------------------
@dataclass
class Kills:
    """Kills one validator after the other, each back before the next one goes."""

    net: Localnet
    training: Training
    draw: random.Random = field(default_factory=random.Random)
    seen: dict[int, str] = field(default_factory=dict)
    """What anybody said is final, by height."""
    contradictions: int = 0
    done: int = 0
    slowest: float = 0.0
    """Seconds from a start until that validator voted again, having all that the others had."""

    def strike(self) -> None:
        """Kill somebody at a random instant, perhaps again on its way back; see it return."""
        time.sleep(self.draw.uniform(0, MAX_UP_SECONDS))
        number = self.draw.choice(self.net.numbers)
        self._kill(number)
        time.sleep(self.draw.uniform(0, MAX_DOWN_SECONDS))
        self.net.start(number)
        if self.done < KILLS and self.draw.random() < KILLED_AGAIN:
            time.sleep(self.draw.uniform(0, MAX_START_SECONDS))
            self._kill(number)
            self.net.start(number)
        started = time.monotonic()
        self.net.wait_answer([number])
        target = max(get_height(self.net, other) for other in self.net.numbers)
        self.net.wait_final(target, [number])
        wait_until(lambda: is_voting(self.net, number), "it votes again")
        seconds = time.monotonic() - started
        self.slowest = max(self.slowest, seconds)
        say(
            f"kill {self.done}/{KILLS}: validator {number} votes again after {seconds:.1f} s, "
            f"with block {target}; round {self.training.get_round()}"
        )

    def _kill(self, number: int) -> None:
        self.remember()
        self.net.kill(number)
        self.done += 1

    def remember(self) -> None:
        """Note what each says is final."""
        for number in self.net.numbers:
            height = get_height(self.net, number)
            name = self.net.get_hash(number, height) if height >= 0 else None
            if name is not None:
                self.contradictions += self.seen.setdefault(height, name) != name

    def count_lost(self) -> int:
        """Return how many of those blocks some validator does not have, or has otherwise."""
        return self.contradictions + sum(
            self.net.get_hash(number, height) != name
            for height, name in self.seen.items()
            for number in self.net.numbers
        )


def measure_kills() -> Measurement:
    """Kill one validator after the other at random instants; nothing may be lost."""
    started = time.monotonic()
    with run_cluster(accounts=CLIENTS + 1) as net, train_on(net) as training:
        kills = Kills(net, training)
        while kills.done < KILLS:
            kills.strike()
        rounds = training.get_round()
        wait_until(lambda: training.get_round() > rounds, "one more round after the last kill")
        kills.remember()
        net.wait_final(max(kills.seen))
        lost = kills.count_lost()
        refused = count_events(net, REFUSAL)
        doubles = sum(count_events(net, one) for one in OFFENCES) + count_slashed(net)
        incomplete = training.count_incomplete()
        agree = is_in_one(net, net.numbers)
        failures = len(training.failures)  # before the chain ends, and all clients with it
        for failure in training.failures:
            say(f"a client gave up: {failure!r}")
    say(
        f"{rounds} rounds, {incomplete} incomplete; {lost} blocks lost, {doubles + refused} doubles"
    )
    return Measurement(
        "4 validators, training",
        f"kill -9 ({kills.done})",
        (time.monotonic() - started) / kills.done,
        1.0,
        {
            "rounds": rounds,
            "incomplete": incomplete,
            "clients failed": failures,
            "s slowest return": kills.slowest,
        },
        {
            "kill9_runs": kills.done,
            "kill9_lost_blocks": lost,
            "kill9_double_votes": doubles + refused,
            "kill9_rounds": rounds,
            "kill9_incomplete_rounds": incomplete,
            "kill9_clients_failed": failures,
            "kill9_roots_equal": agree,
        },
    )


# -- partitions ------------------------------------------------------------------------------------
def measure_partitions() -> list[Measurement]:
    """Cut two from two, then one from three, and let them heal by themselves."""
    relays = Relays()
    try:
        with run_cluster(accounts=CLIENTS + 1, prepare=lambda net: reroute(net, relays)) as net:
            halves = cut_in_halves(net, relays)
            lone = cut_one_off(net, relays)
    finally:
        relays.close()
    return [halves, lone]


def reroute(net: Localnet, relays: Relays) -> None:
    """Let each validator reach each other one through a relay of their own, both lanes."""
    validators = find_validators(net)
    for number in net.numbers:
        peers = []
        for other, validator in validators.items():
            if other != number:
                port = int(validator.endpoint.rpartition(":")[2])
                entry = relays.open_pair((number, other), port)
                peers.append(f"0x{validator.address.hex()}=127.0.0.1:{entry}")
        directory = net.get_directory(number)
        config = load_config(directory)
        config = replace(config, network=replace(config.network, peers=tuple(peers)))
        (directory / CONFIG_FILE).write_text(encode_config(config))


def cut_in_halves(net: Localnet, relays: Relays) -> Measurement:
    """2|2: nothing may become final; once it heals, all go on by themselves."""
    half = set(net.numbers[: len(net.numbers) // 2])
    relays.cut(lambda pair: (pair[0] in half) != (pair[1] in half))
    time.sleep(2)  # what was on its way when the wires were cut may still arrive
    before = [get_height(net, number) for number in net.numbers]
    time.sleep(PARTITION_SECONDS)
    stood = max(get_height(net, number) for number in net.numbers) <= max(before)
    relays.heal()
    goal = max(before) + 3
    seconds = wait_until(
        lambda: all(get_height(net, number) >= goal for number in net.numbers),
        "all go on after the partition",
    )
    say(f"2|2: stood still {stood}; all went on {seconds:.1f} s after it healed")
    heals = stood and is_in_one(net, net.numbers)
    return Measurement(
        "4 validators",
        f"2|2 for {PARTITION_SECONDS:.0f} s, then on",
        seconds,
        1.0,
        {"stood still": float(stood)},
        {"partition_heals": heals, "partition_heal_seconds": round(seconds, 1)},
    )


def cut_one_off(net: Localnet, relays: Relays) -> Measurement:
    """3|1: three go on, the fourth catches up."""
    lone = net.numbers[-1]
    relays.cut(lambda pair: lone in pair)
    before = get_height(net, lone)
    time.sleep(PARTITION_SECONDS / 4)
    others = [get_height(net, number) for number in net.numbers if number != lone]
    went_on = min(others) > before + 2
    relays.heal()
    goal = max(others)
    seconds = wait_until(lambda: get_height(net, lone) >= goal, "the fourth catches up")
    say(f"3|1: went on {went_on}; the fourth caught up in {seconds:.1f} s")
    catches_up = went_on and is_in_one(net, net.numbers)
    return Measurement(
        "4 validators",
        "3|1, then the fourth catches up",
        seconds,
        1.0,
        {"blocks behind": float(goal - before)},
        {"partition_one_catches_up": catches_up},
    )


# -- cheats ----------------------------------------------------------------------------------------
def measure_cheats() -> Measurement:
    """Let one validator contradict itself, in every way that there is."""
    started, right = time.monotonic(), {}
    for offence in Offence:
        aftermath = watch_equivocation(offence)
        right[offence] = aftermath.is_right
        say(f"{offence}: {aftermath}")
    return Measurement(
        "4 validators, one cheats",
        "until three go on, audited",
        (time.monotonic() - started) / len(right),
        1.0,
        {"offences": len(right), "as it should be": sum(right.values())},
        {"equivocator_slashed": all(right.values())},
    )
