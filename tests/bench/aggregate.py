"""What an aggregation costs, against numpy and against the gas it is charged.

`numpy` is the rule alone, as one would write it: no range check, no norm, no score. `kernel` is
phase 2 of the mean: all of these. `aggregate` adds decoding and encoding the model. What the
precompile does on top is hashing the new model. The robust rules get updates whose exponents
differ, as those of clients do, so that values must be brought to one exponent before they compare.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from steelyard.chain import aggregate, reference
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.jobs import open_job
from steelyard.chain.model import (
    Manifest,
    Role,
    TensorSpec,
    compute_layout,
    decode_model,
    encode_model,
)
from steelyard.chain.params import BLOCK_VALUES, GAS_CALL, GAS_PER_UPDATE, WEIGHT_TOTAL
from steelyard.chain.pricing import compute_aggregating_gas
from steelyard.chain.robust import decide
from steelyard.chain.rules import Rule, RuleKind
from steelyard.chain.shares import compute_shares
from steelyard.chain.types import Address, BlobName, Digest, Round, TaskId
from steelyard.chain.update import (
    Binding,
    Mode,
    UpdateHeader,
    check_binding,
    decode_update,
    encode_update,
)

from .timing import Measurement, measure

MEAN = Rule(RuleKind.WEIGHTED_MEAN, 0)
CLIPPED = Rule(RuleKind.NORM_CLIPPED_MEAN, 2**24)
EXPONENT = -20
TENTH = 10
"""The robust rules withstand one client in so many."""
SLICE = 100_000
"""Values that numpy takes at a time in robust rules: all of them would not fit the memory."""
ROBUST_CASES = ((1_000_000, 10), (1_000_000, 100))
CASES = ((1_000_000, 10, 8), (1_000_000, 100, 8), (10_000_000, 10, 8), (10_000_000, 10, 16))

Updates = list[tuple[BlobName, bytes]]


def make_case(
    values: int, clients: int, bits: int, exponents: int = 1
) -> tuple[BlobName, bytes, Updates]:
    """Return a zero model of one large tensor and Gaussian updates with so many exponents."""
    manifest = Manifest((TensorSpec("weight", (values,), "float32", 24, Role.TRAIN),))
    base = encode_model(manifest, np.zeros(values, np.int32))
    name = compute_blob_name(base)
    blocks = compute_layout(manifest).length.size
    random = np.random.default_rng(7)
    dtype = np.int8 if bits == 8 else np.int16
    updates: Updates = []
    for client in range(clients):
        header = UpdateHeader(
            Mode.OPEN, bits, Round(1), 1337, TaskId(1), values, blocks, name,
            Address(client.to_bytes(20, "big")),
        )  # fmt: skip
        q = np.clip(random.standard_normal(values, np.float32) * 20, -127, 127).astype(dtype)
        drawn = EXPONENT + random.integers(exponents, size=blocks, dtype=np.int8)
        data = encode_update(header, drawn, q)
        updates.append((BlobName(Digest(client.to_bytes(32, "big")), len(data)), data))
    return name, base, updates


def average_with_numpy(
    base: NDArray[np.int32], updates: Sequence[tuple[BlobName, bytes]], shares: Sequence[int]
) -> NDArray[np.int32]:
    """Return the mean with whole-array numpy: one exponent, no check, no norm, no score."""
    sums = np.zeros(base.size, np.int64)
    for share, (_, data) in zip(shares, updates, strict=True):
        update = decode_update(data)
        sums += update.values.astype(np.int64) * (share << (24 + EXPONENT))
    odd = (sums >> 20) & 1
    rounded = (sums + (WEIGHT_TOTAL // 2 - 1 + odd)) >> 20
    return np.clip(base + rounded, -(2**31), 2**31 - 1).astype(np.int32)


def _run_case(values: int, clients: int, bits: int) -> list[Measurement]:
    _, base, updates = make_case(values, clients, bits)
    weights = list(range(1, clients + 1))
    shares = compute_shares([update for update, _ in updates], weights)
    model = decode_model(base)
    job = open_job(MEAN, base, None, updates)
    decision = decide(MEAN, [update for update, _ in updates], weights, None)
    pool = ThreadPoolExecutor(2)

    def run_kernel(spread: aggregate.Spread) -> None:
        aggregate._combine(job, decision, 0, job.layout.length.size, spread)

    def read() -> int:
        return sum(int(update.values.view(np.int64).max()) for update in job.payloads.updates)

    candidates: dict[str, Callable[[], object]] = {
        "numpy, mean only": lambda: average_with_numpy(model.values, updates, shares),
        "read every byte once": read,
        "kernel, all in one pass": lambda: run_kernel(map),
        "kernel, two threads": lambda: run_kernel(pool.map),
        "aggregate": lambda: aggregate.aggregate(MEAN, base, None, updates, weights),
        "aggregate, norms clipped": lambda: aggregate.aggregate(
            CLIPPED, base, None, updates, weights
        ),
        "hash the new model": lambda: compute_blob_name(base),
    }
    result = aggregate.aggregate(MEAN, base, None, updates, weights)
    assert np.array_equal(
        decode_model(result.model).values, average_with_numpy(model.values, updates, shares)
    )
    read_bytes = dict.fromkeys(candidates, values * clients * bits // 8)
    read_bytes["hash the new model"] = len(base)
    gas = _compute_gas(MEAN, base, updates)
    found = measure(f"{values:,} x {clients}, {bits} bit", candidates, repeats=7)
    pool.shutdown()
    return [
        replace(
            row,
            notes={
                "GB/s": read_bytes[row.name] / row.seconds / 1e9,
                "ns/gas": row.seconds * 1e9 / gas,
            },
        )
        for row in found
    ]


def _compute_gas(rule: Rule, base: bytes, updates: Updates) -> int:
    work = compute_aggregating_gas(rule, len(base), 0, [len(data) for _, data in updates])
    return GAS_CALL + GAS_PER_UPDATE * len(updates) + work


# -- robust rules ----------------------------------------------------------------------------------


def _shift_slice(updates: Updates, start: int, stop: int) -> NDArray[np.int32]:
    """Return some values of all updates in units of 2**-24: (clients, values)."""
    rows = []
    for _, data in updates:
        update = decode_update(data)
        steps = np.repeat(update.exponents.astype(np.int32) + 24, BLOCK_VALUES)
        rows.append(update.values[start:stop].astype(np.int32) << steps[start:stop])
    return np.stack(rows)


def trim_with_numpy(updates: Updates, trimmed: int, values: int) -> NDArray[np.int64]:
    """Return trimmed means, rounded half to even."""
    left = len(updates) - 2 * trimmed
    means = []
    for start in range(0, values, SLICE):
        rows = _shift_slice(updates, start, min(start + SLICE, values))
        parted = np.partition(rows, (trimmed, len(updates) - trimmed - 1), axis=0)
        total = parted[trimmed : len(updates) - trimmed].sum(axis=0, dtype=np.int64)
        means.append(np.rint(total / left).astype(np.int64))
    return np.concatenate(means)


def choose_with_numpy(updates: Updates, bad: int, values: int) -> list[int]:
    """Return whom Multi-Krum keeps, by a Gram matrix of floats that are exact for such values."""
    gram = np.zeros((len(updates), len(updates)))
    for start in range(0, values, SLICE):
        rows = _shift_slice(updates, start, min(start + SLICE, values)).astype(np.float64)
        gram += rows @ rows.T
    norms2 = gram.diagonal()
    distances = norms2[:, None] + norms2[None, :] - 2 * gram
    np.fill_diagonal(distances, np.inf)
    near = np.sort(distances, axis=1)[:, : len(updates) - bad - 2].sum(axis=1)
    return sorted(np.argsort(near, kind="stable")[: len(updates) - bad].tolist())


def _run_robust_case(values: int, clients: int) -> list[Measurement]:
    _, base, updates = make_case(values, clients, 8, exponents=3)
    bad, weights = clients // TENTH, [1] * clients
    trimmed, krum = Rule(RuleKind.TRIMMED_MEAN, bad), Rule(RuleKind.MULTI_KRUM, bad)
    momentum = Rule(RuleKind.WEIGHTED_MEAN, 0, momentum=3686)

    def run_rule(rule: Rule) -> Callable[[], aggregate.Aggregate]:
        return lambda: aggregate.aggregate(rule, base, None, updates, weights)

    made = decode_model(run_rule(trimmed)().model).values
    expected = trim_with_numpy(updates, bad, values)
    assert np.array_equal(made, expected)
    kept = [i for i, share in enumerate(run_rule(krum)().shares) if share]
    assert kept == choose_with_numpy(updates, bad, values)
    found = measure(
        f"{values:,} x {clients}, 8 bit",
        {
            "mean": run_rule(MEAN),
            "mean with momentum": run_rule(momentum),
            "trimmed mean": run_rule(trimmed),
            "trimmed mean, numpy": lambda: trim_with_numpy(updates, bad, values),
            "Multi-Krum": run_rule(krum),
            "Multi-Krum, numpy": lambda: choose_with_numpy(updates, bad, values),
        },
        repeats=3,
    )
    rules = {"mean": MEAN, "mean with momentum": momentum, "trimmed mean": trimmed}
    rules["Multi-Krum"] = krum
    return [
        replace(
            row, notes={"ns/gas": row.seconds * 1e9 / _compute_gas(rules[row.name], base, updates)}
        )
        if row.name in rules
        else row
        for row in found
    ]


def _run_single() -> list[Measurement]:
    """Verify one update, and compare the oracle on a size that it can do."""
    name, base, updates = make_case(100_000, 4, 8)
    model = decode_model(base)
    binding = Binding(1337, TaskId(1), Round(1), name, Address(bytes(20)))
    check_binding(decode_update(updates[0][1]).header, binding)
    small = "100,000 x 4, 8 bit"
    found = measure(
        small,
        {
            "reference": lambda: reference.aggregate(MEAN, base, None, updates, [1, 2, 3, 4]),
            "aggregate": lambda: aggregate.aggregate(MEAN, base, None, updates, [1, 2, 3, 4]),
        },
        repeats=3,
    )
    return found + measure(
        "100,000, 8 bit",
        {
            "verify": lambda: aggregate.verify_update(updates[0][1], model, binding, 2**200),
        },
        repeats=9,
    )


def run() -> list[Measurement]:
    """Measure every case."""
    rows = [row for case in CASES for row in _run_case(*case)]
    rows += [row for case in ROBUST_CASES for row in _run_robust_case(*case)]
    return rows + _run_single()
