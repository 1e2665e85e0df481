"""A task as its publisher describes it, and what the chain would refuse of it.

Everything here is checked before anything costs money, in the contract's own terms
(contracts/terms.vy; docs/tasks.md, "Parameters"): a row of a table for each rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from steelyard.chain import params
from steelyard.chain.rules import RuleKind
from steelyard.chain.types import Address

from .amounts import format_coins
from .bundle import check_config
from .errors import InvalidTask
from .keys import format_address
from .metrics import DEFAULT_METRICS
from .records import (
    FRACTION_UNIT,
    MAX_METRICS,
    MAX_REPUTATION,
    MAX_ROUNDS,
    MAX_STALENESS,
    Admission,
    OnFailedQuorum,
)

RULES: Final = {
    "fedavg": RuleKind.WEIGHTED_MEAN,
    "clipped": RuleKind.NORM_CLIPPED_MEAN,
    "trimmed": RuleKind.TRIMMED_MEAN,
    "multi_krum": RuleKind.MULTI_KRUM,
}
WEIGHTINGS: Final = {"samples": 0, "stake": 1, "uniform": 2}
ADMISSIONS: Final = {kind.name.lower(): kind for kind in Admission}
POLICIES: Final = {kind.name.lower(): kind for kind in OnFailedQuorum}
LEAST_CLIENTS: Final = {"trimmed": (2, 1), "multi_krum": (2, 3)}
"""By rule: with f dishonest clients it needs a*f + b in every round."""
MAX_CLIENTS: Final = 128
MAX_WEI: Final = 2**100
MAX_PERIOD_SECONDS: Final = 30 * 86_400
MAX_EXTENSIONS: Final = 16
MIN_NORM: Final = 2.0**-params.FRACTION_BITS
MAX_NORM: Final = 2.0**100
"""Squared and in units of 2**-48 it still fits the contract's 256 bits."""
NEVER: Final = 2**256 - 1
RANGES: Final = {
    "rounds": (1, MAX_ROUNDS),
    "max_clients": (1, MAX_CLIENTS),
    "min_clients": (1, MAX_CLIENTS),
    "spare_clients": (0, MAX_CLIENTS),
    "byzantine": (1, MAX_CLIENTS),
    "max_staleness": (0, MAX_STALENESS),
    "max_extensions": (1, MAX_EXTENSIONS),
    "max_saturated": (0, NEVER),
    "evaluate_every": (0, 10_000),
    "round_seconds": (2, MAX_PERIOD_SECONDS),
    "join_seconds": (1, MAX_PERIOD_SECONDS),
    "commit_seconds": (1, MAX_PERIOD_SECONDS),
    "reveal_seconds": (1, MAX_PERIOD_SECONDS),
    "reward": (0, MAX_WEI),
    "base_stake": (0, MAX_WEI),
    "stake_per_sample": (0, MAX_WEI),
    "bond": (0, MAX_WEI),
    "close_reserve": (0, MAX_WEI),
    "close_bounty": (0, MAX_WEI),
    "sponsor_samples": (0, 2**64 - 1),
}
"""Whole numbers of a task: least and most. None stands for a default where there is one."""
FRACTIONS: Final = {
    "fraction_fit": (Fraction(1, FRACTION_UNIT), Fraction(1)),
    "max_weight_share": (Fraction(1, FRACTION_UNIT), Fraction(1)),
    "staleness_discount": (Fraction(0), Fraction(1)),
    "min_reputation": (Fraction(0), Fraction(MAX_REPUTATION, FRACTION_UNIT)),
    "platform_share": (Fraction(0), Fraction(0.2)),
    "server_lr": (
        Fraction(1, params.STEP_UNIT),
        Fraction(params.MAX_SERVER_RATE, params.STEP_UNIT),
    ),
    "momentum": (Fraction(0), Fraction(params.MAX_MOMENTUM, params.STEP_UNIT)),
    "admission_norm": (Fraction(MIN_NORM), Fraction(MAX_NORM)),
    "clip_norm": (Fraction(MIN_NORM), Fraction(MAX_NORM)),
}
"""Real numbers of a task: least and most."""


@dataclass(frozen=True)
class Task:
    """A task to publish. Amounts in wei (see `coins`), times in seconds, fractions from 0 to 1.

    `name`: 1 to 64 bytes, public. `reference`: any word; publishes the same task once more.
    `mode`: "open", the only one: updates are public.

    What is trained. `model`: named arrays, or the bytes of a model file. `bundle`: a directory for
    participants, of which program text goes in, and whatever else `bundle_include` names: all of it
    becomes public for ever. `config`: what training functions see as `ctx.config`. `metrics`: what
    participants report, in order; none for no reports. `evaluate_every`: reports are asked for
    after every so many rounds that made a model, and after the last; None: after each.

    How updates become a model. `rule`: "fedavg"; "clipped" (needs `clip_norm`); "trimmed" and
    "multi_krum" (need `byzantine`, how many clients may be dishonest). `max_weight_share`: the
    most that one update may weigh. `admission_norm`: the largest L2 norm of an update.
    `weighting`: an update counts by its "samples", its sender's "stake", or "uniform".
    `bits`: 8 or 16 for each value of an update; 16 are finer and twice as long.
    `server_lr`, `momentum`: the server's step (FedAvgM); 1 and 0 are plain averaging.
    `max_saturated`: the task pauses when more model values than that hit their limits at once.

    When. `rounds`: how many. `join_seconds`: how long the lobby waits for participants.
    `round_seconds`: three quarters to train and commit, the rest to reveal; or `commit_seconds`
    and `reveal_seconds` by themselves.

    Who takes part in a round. At most `max_clients` may join. Of those who joined, `fraction_fit`
    are drawn, never fewer than `min_clients`, and `spare_clients` beyond that. An update may come
    up to `max_staleness` rounds late, then it weighs `staleness_discount` for each round.
    `on_failed_quorum`: "skip" the round, "extend" its periods up to `max_extensions` times, or
    "refund" and end the task.

    Who may join. `admission`: "open"; "invited" (`allow`, and whom `invite` adds); "applicants"
    (the same, and anybody may apply). None: "invited" if there is an `allow`. `min_reputation`:
    from earlier tasks of this publisher; newcomers have an eighth. `base_stake`,
    `stake_per_sample`: what a participant puts down, in wei, and in wei for each row that it may
    claim in a round; it comes back. `bond`: the wei of it that a participant loses who commits and
    never reveals. `sponsor_samples`: stake for so many samples, and gas for the whole task, is sent
    to everybody in `allow`.

    Who is paid. `reward`: wei for all rounds together, by weight; what nobody earned comes back.
    `platform_share`: the part of each round's pool that goes to the address `platform`.
    `close_reserve`: wei for each round, set aside beside the reward for the gas of whoever closes
    it; `close_bounty`: the wei of it that are paid on top of the gas. None: enough for dearer gas
    than now, and a tip; what was not needed comes back.
    """

    name: str
    model: Mapping[str, NDArray[np.generic]] | bytes
    bundle: str | Path | None = None
    config: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    metrics: Sequence[str] = DEFAULT_METRICS
    evaluate_every: int | None = None
    mode: str = "open"
    rule: str = "fedavg"
    clip_norm: float | None = None
    byzantine: int | None = None
    weighting: str = "samples"
    max_weight_share: float = 1.0
    server_lr: float = 1.0
    momentum: float = 0.0
    max_saturated: int | None = None
    bits: int = 8
    admission_norm: float = 16.0
    rounds: int = 8
    min_clients: int = 2
    max_clients: int = 16
    fraction_fit: float = 1.0
    spare_clients: int = 0
    max_staleness: int = 0
    staleness_discount: float = 0.5
    on_failed_quorum: str = "skip"
    max_extensions: int | None = None
    round_seconds: int = 3600
    join_seconds: int = 3600
    commit_seconds: int | None = None
    reveal_seconds: int | None = None
    admission: str | None = None
    allow: Sequence[str | Address] = ()
    min_reputation: float = 0.0
    base_stake: int = 0
    stake_per_sample: int = 0
    bond: int = 0
    sponsor_samples: int = 0
    reward: int = 0
    close_reserve: int | None = None
    close_bounty: int | None = None
    platform: str | Address | None = None
    platform_share: float = 0.0
    reference: str = ""
    bundle_include: Sequence[str] = ()


def is_rule_bounded(task: Task) -> bool:
    """Whether the rule has the number of dishonest clients that it needs, and no other."""
    return (task.byzantine is not None) == (task.rule in LEAST_CLIENTS)


def has_enough_for_rule(task: Task) -> bool:
    """Whether every round that counts has the honest majority that its rule assumes."""
    factor, more = LEAST_CLIENTS.get(task.rule, (0, 0))
    return task.min_clients >= factor * (task.byzantine or 0) + more


def is_lateness_paid(task: Task) -> bool:
    """Whether late updates that count whatever they weigh weigh anything."""
    is_counted = task.rule == "trimmed" and task.max_staleness > 0
    return not is_counted or compute_units(task.staleness_discount) > 0


def is_sponsorship_known(task: Task) -> bool:
    """Whether a sponsor knows whom to send coins to."""
    return not task.sponsor_samples or bool(task.allow)


TERMS: Final[tuple[tuple[str, Callable[[Task], bool], str], ...]] = (
    ("name", lambda t: 0 < len(t.name.encode()) <= 64, "a name has 1 to 64 bytes"),
    ("mode", lambda t: t.mode == "open", 'mode must be "open"'),
    ("rule", lambda t: t.rule in RULES, f"rule must be one of {', '.join(RULES)}"),
    (
        "clip_norm",
        lambda t: (t.clip_norm is not None) == (t.rule == "clipped"),
        'give clip_norm with rule="clipped", and only with it',
    ),
    (
        "byzantine",
        is_rule_bounded,
        'give byzantine with rule="trimmed" or "multi_krum", and only with these: how many clients '
        "may be dishonest",
    ),
    (
        "min_clients",
        lambda t: t.min_clients <= t.max_clients,
        "min_clients is above max_clients",
    ),
    (
        "byzantine",
        has_enough_for_rule,
        "with f dishonest clients trimmed needs min_clients of at least 2f + 1, multi_krum 2f + 3",
    ),
    (
        "weighting",
        lambda t: t.weighting in WEIGHTINGS,
        f"weighting must be one of {', '.join(WEIGHTINGS)}",
    ),
    (
        "weighting",
        lambda t: t.rule != "trimmed" or t.weighting == "uniform",
        'the trimmed mean weighs all alike: give weighting="uniform" with it',
    ),
    (
        "staleness_discount",
        is_lateness_paid,
        "the trimmed mean counts a late update in full and would pay nothing for it: give a "
        "staleness_discount above 0, or max_staleness = 0",
    ),
    ("bits", lambda t: t.bits in (8, 16), "bits must be 8 or 16"),
    (
        "on_failed_quorum",
        lambda t: t.on_failed_quorum in POLICIES,
        f"on_failed_quorum must be one of {', '.join(POLICIES)}",
    ),
    (
        "max_extensions",
        lambda t: t.max_extensions is None or t.on_failed_quorum == "extend",
        'give max_extensions with on_failed_quorum="extend", and only with it',
    ),
    (
        "evaluate_every",
        lambda t: bool(t.metrics) or not t.evaluate_every,
        "evaluate_every asks for reports and there are no metrics; name some, or leave it out",
    ),
    (
        "metrics",
        lambda t: len(t.metrics) <= MAX_METRICS and not any("," in name for name in t.metrics),
        f"metrics are at most {MAX_METRICS} names without commas",
    ),
    (
        "admission",
        lambda t: t.admission is None or t.admission in ADMISSIONS,
        f"admission must be one of {', '.join(ADMISSIONS)}",
    ),
    (
        "admission",
        lambda t: t.admission != "open" or not t.allow,
        'an allow list needs admission="invited" or "applicants"',
    ),
    ("allow", lambda t: len(t.allow) <= MAX_CLIENTS, f"allow has at most {MAX_CLIENTS} addresses"),
    (
        "base_stake",
        lambda t: t.base_stake > 0 or t.weighting != "stake",
        "weighting by stake needs a base_stake",
    ),
    ("bond", lambda t: t.bond <= t.base_stake, "the bond is a part of base_stake; raise that"),
    (
        "platform",
        lambda t: (t.platform is not None) == (t.platform_share > 0),
        "give platform and platform_share together, or neither",
    ),
    (
        "platform_share",
        lambda t: t.platform is None or compute_units(t.platform_share) > 0,
        "platform_share is below 2**-20, the least that the chain counts; give more, or neither",
    ),
    (
        "sponsor_samples",
        is_sponsorship_known,
        "sponsor_samples goes to everybody in allow, and there is none",
    ),
)
"""What must hold between the fields of a task, and what to do where it does not."""


def check_task_terms(task: Task) -> None:
    """Raises InvalidTask, naming the field, for what the chain or this version refuses."""
    check_ranges(task)
    check_fractions(task)
    for name, is_good, hint in TERMS:
        if not is_good(task):
            raise InvalidTask(f"task_{name}", hint)
    check_config(dict(task.config))


def check_ranges(task: Task) -> None:
    """Raises InvalidTask for a number that is not whole or out of range; None means a default."""
    for name, (least, most) in RANGES.items():
        value = getattr(task, name)
        if value is None and Task.__dataclass_fields__[name].default is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidTask(f"task_{name}", describe_range(name, value))


def describe_range(name: str, value: object) -> str:
    """Return why a number is none that a task can have, amounts in coins."""
    least, most = RANGES[name]
    if most != MAX_WEI:
        return f"{name} is {value!r:.60}; give a whole number, {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        return f'{name} is {value!r:.60}; give whole wei, as coins("1.5") does'
    given = format_coins(value)[:60]
    return f"{name} is {given} coins; give {format_coins(least)} to {format_coins(most)}"


def check_fractions(task: Task) -> None:
    """Raises InvalidTask for what is no number, or out of range; NaN is none."""
    for name, (least, most) in FRACTIONS.items():
        value = getattr(task, name)
        if value is None and Task.__dataclass_fields__[name].default is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise InvalidTask(
                f"task_{name}",
                f"{name} is {value!r:.60}; give a number, {float(least):g} to {float(most):g}",
            )


def compute_units(value: float) -> int:
    """Return a fraction in units of 2**-20, rounded down: nobody gets more than was said."""
    return int(Fraction(value) * FRACTION_UNIT)


def compute_steps(value: float) -> int:
    """Return a learning rate or momentum in units of 2**-12, rounded to the nearest."""
    return round(Fraction(value) * params.STEP_UNIT)


def parse_allowed(text: str | Address) -> Address:
    """Return an address that may join. Raises InvalidTask `task_allow`."""
    address = parse_address(text)
    if address is None:
        raise InvalidTask("task_allow", f"{text!r:.60} is not an address of 20 bytes, or mistyped")
    return address


def parse_platform(text: str | Address | None) -> Address:
    """Return the platform's address, or zeros for none. Raises InvalidTask `task_platform`."""
    address = Address(bytes(20)) if text is None else parse_address(text)
    if address is None or (text is not None and not any(address)):
        raise InvalidTask("task_platform", f"{text!r:.60} is not an address of 20 bytes")
    return address


def parse_address(text: str | Address) -> Address | None:
    """Return an address, None if it is none; one in mixed case must have its checksum (EIP-55)."""
    if isinstance(text, bytes):
        return Address(text) if len(text) == 20 else None
    digits = text.removeprefix("0x") if isinstance(text, str) else ""
    try:
        raw = Address(bytes.fromhex(digits))
    except ValueError:
        return None
    is_mixed = digits not in (digits.lower(), digits.upper())
    if len(raw) != 20 or (is_mixed and format_address(raw) != f"0x{digits}"):
        return None
    return raw
