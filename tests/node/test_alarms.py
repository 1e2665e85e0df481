"""Each alarm comes with its cause and goes with it; the log hears of both once."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from steelyard.node.alarms import (
    GRACE_SECONDS,
    LOW_BALANCE_WEI,
    MAX_SOURCES,
    SAMPLES,
    AlarmBoard,
    ClockWatch,
    Facts,
    Reach,
    Standing,
    State,
    compute_stall_seconds,
    find_alarms,
)
from steelyard.node.logs import LOGGER
from steelyard.node.records import Alarm

GOOD = Facts(
    uptime_seconds=1_000.0,
    since_final_seconds=1.0,
    stall_seconds=45.0,
    free_bytes=100 * 2**30,
    min_free_bytes=2**28,
    reach=Reach(power=3, total=4),
    standing=Standing(State.ACTIVE, is_banned=False, balance=10**18),
    has_voted=True,
    skew_seconds=0.4,
)


def standing(state: State, *, banned: bool = False, balance: int = 10**18) -> dict[str, Any]:
    return {"standing": Standing(state, is_banned=banned, balance=balance)}


def get_codes(**changes: Any) -> list[str]:
    return [alarm.code for alarm in find_alarms(replace(GOOD, **changes))]


def test_a_validator_in_good_order_has_no_alarm() -> None:
    assert get_codes() == []


def test_nothing_that_does_not_apply_or_is_not_known_is_an_alarm() -> None:
    assert get_codes(reach=None, standing=None, skew_seconds=None, has_voted=False) == []


CAUSES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("disk_full", {"stopped": Alarm("disk_full", "")}, {"stopped": None}),
    ("finality_stalled", {"since_final_seconds": 45.1}, {"since_final_seconds": 45.0}),
    ("peers_lost", {"reach": Reach(2, 3)}, {"reach": Reach(67, 100)}),
    ("peers_lost", {"reach": Reach(1, 4)}, {"reach": Reach(1, 1)}),
    ("set_unreadable", {"set_error": "reverted"}, {"set_error": None}),
    ("follow_refused", {"follow_refusal": "checkpoint_too_old"}, {"follow_refusal": None}),
    ("signer_outdated", {"is_signer_outdated": True}, {"is_signer_outdated": False}),
    ("validator_slashed", standing(State.LEAVING, banned=True), standing(State.LEAVING)),
    ("validator_jailed", standing(State.JAILED), standing(State.ACTIVE)),
    ("validator_displaced", standing(State.WAITING), standing(State.ACTIVE)),
    ("validator_absent", standing(State.NOBODY), standing(State.LEAVING)),
    (
        "account_low",
        standing(State.ACTIVE, balance=LOW_BALANCE_WEI - 1),
        standing(State.ACTIVE, balance=LOW_BALANCE_WEI),
    ),
    ("clock_skew", {"skew_seconds": 2.1}, {"skew_seconds": 2.0}),
    ("clock_skew", {"skew_seconds": -2.1}, {"skew_seconds": -2.0}),
    ("disk_low", {"free_bytes": 2**30 - 1}, {"free_bytes": 2**30}),
]


@pytest.mark.parametrize(
    ("code", "cause", "cure"), CAUSES, ids=[f"{code}-{i}" for i, (code, _, _) in enumerate(CAUSES)]
)
def test_an_alarm_is_there_as_long_as_its_cause(
    code: str, cause: dict[str, Any], cure: dict[str, Any]
) -> None:
    assert get_codes(**cause) == [code]
    assert get_codes(**cure) == []


def test_peers_have_time_to_connect_after_a_start() -> None:
    assert get_codes(reach=Reach(1, 4), uptime_seconds=GRACE_SECONDS) == []


def test_an_account_that_never_was_a_validator_misses_no_stake() -> None:
    assert get_codes(**standing(State.NOBODY), has_voted=False) == []


def test_a_full_node_needs_no_coins() -> None:
    assert get_codes(**standing(State.NOBODY, balance=0), has_voted=False) == []


def test_what_stops_the_node_comes_first() -> None:
    stopped = Alarm("data_corrupt", "")
    assert get_codes(stopped=stopped, since_final_seconds=99.0, free_bytes=0) == [
        "data_corrupt",
        "finality_stalled",
        "disk_low",
    ]


@pytest.mark.parametrize(
    ("heartbeat_ms", "timeout_ms", "seconds"), [(5_000, 10_000, 45.0), (200, 300, 15.0)]
)
def test_a_stall_is_longer_than_a_few_leaders_that_are_down(
    heartbeat_ms: int, timeout_ms: int, seconds: float
) -> None:
    assert compute_stall_seconds(heartbeat_ms, timeout_ms) == seconds


# -- the board -------------------------------------------------------------------------------------
@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Events of the node, though another test may have sent them elsewhere."""
    before, LOGGER.propagate = LOGGER.propagate, True
    caplog.set_level(logging.INFO, LOGGER.name)
    yield caplog
    LOGGER.propagate = before


def test_the_log_hears_once_that_an_alarm_came_and_once_that_it_went(
    events: pytest.LogCaptureFixture,
) -> None:
    board = AlarmBoard()
    for seconds in (46, 47, 48):
        board.update([Alarm("finality_stalled", f"for {seconds} s")])
    assert board.get() == (Alarm("finality_stalled", "for 48 s"),)
    board.update([])
    board.update([])
    assert board.get() == ()
    assert events.messages == [
        'alarm_raised code=finality_stalled message="for 46 s"',
        "alarm_cleared code=finality_stalled",
    ]


def test_one_alarm_goes_while_another_stays(events: pytest.LogCaptureFixture) -> None:
    board = AlarmBoard()
    board.update([Alarm("disk_low", ""), Alarm("clock_skew", "")])
    board.update([Alarm("clock_skew", "")])
    assert [alarm.code for alarm in board.get()] == ["clock_skew"]
    assert events.messages[2:] == ["alarm_cleared code=disk_low"]


# -- clocks ----------------------------------------------------------------------------------------
def watch(*offsets: float, delays: tuple[float, ...] = (0.1,)) -> float | None:
    """What we think of our clock if each leader's clock is `offset` seconds ahead of the truth."""
    clock = ClockWatch()
    for leader, offset in enumerate(offsets):
        for number in range(SAMPLES):
            now = 1_000.0 + number * 0.3
            sent = now - delays[number % len(delays)]
            clock.observe(leader, int(sent + offset), now)
    return clock.estimate()


def test_nothing_is_said_of_a_clock_before_anybody_was_heard() -> None:
    assert watch() is None


def test_clocks_that_agree_differ_by_less_than_a_second() -> None:
    estimate = watch(0.0, 0.0, 0.0)
    assert estimate is not None
    assert abs(estimate) < 1.0


@pytest.mark.parametrize("offset", [-10.0, 10.0])
def test_our_own_clock_is_doubted_when_all_others_agree_against_it(offset: float) -> None:
    estimate = watch(offset, offset, offset)
    assert estimate is not None
    assert abs(estimate + offset) < 1.0


def test_one_wrong_clock_among_three_makes_us_doubt_nothing() -> None:
    estimate = watch(0.0, 0.0, 60.0)
    assert estimate is not None
    assert abs(estimate) < 1.0


def test_blocks_that_came_late_make_us_doubt_nothing() -> None:
    estimate = watch(0.0, 0.0, 0.0, delays=(30.0, 0.2, 5.0))
    assert estimate is not None
    assert abs(estimate) < 1.0


def test_two_proposals_of_long_ago_say_nothing_of_our_clock() -> None:
    clock = ClockWatch()
    for leader in range(3):
        for _ in range(2):
            clock.observe(leader, 1_000, 1_009.0)
    assert clock.estimate() is None


def test_leaders_without_end_do_not_fill_the_memory() -> None:
    clock = ClockWatch()
    for leader in range(2 * MAX_SOURCES):
        clock.observe(leader, 0, 0.0)
    assert len(clock.samples) == MAX_SOURCES
