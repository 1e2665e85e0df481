"""What an aggregation costs, against numpy and against the gas it is charged.

`numpy` is the mean alone, as one would write it: no range check, no norm, no score. `kernel` is
`aggregate_blocks`: all of these. `aggregate` adds decoding and encoding the model. What the
precompile does on top is hashing the new model.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from steelyard.chain import aggregate, reference
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.model import (
    Manifest,
    Role,
    TensorSpec,
    compute_layout,
    decode_model,
    encode_model,
)
from steelyard.chain.params import GAS_CALL, GAS_PER_UPDATE, WEIGHT_TOTAL
from steelyard.chain.pricing import compute_aggregation_work
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
CASES = ((1_000_000, 10, 8), (1_000_000, 100, 8), (10_000_000, 10, 8), (10_000_000, 10, 16))

Updates = list[tuple[BlobName, bytes]]


def make_case(values: int, clients: int, bits: int) -> tuple[BlobName, bytes, Updates]:
    """Return a zero model of one large tensor and Gaussian updates to it."""
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
        data = encode_update(header, np.full(blocks, EXPONENT, np.int8), q)
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
    name, base, updates = make_case(values, clients, bits)
    weights = list(range(1, clients + 1))
    shares = compute_shares([update for update, _ in updates], weights)
    model = decode_model(base)
    layout = compute_layout(model.manifest)
    payloads = aggregate._arrange([decode_update(data) for _, data in updates])
    out = model.values.copy()
    pool = ThreadPoolExecutor(2)

    def run_kernel(spread: aggregate.Spread) -> None:
        aggregate._aggregate_ranges(payloads, layout, (shares, shares), model.values, out, spread)

    def read() -> int:
        return sum(int(update.values.view(np.int64).max()) for update in payloads.updates)

    candidates: dict[str, Callable[[], object]] = {
        "numpy, mean only": lambda: average_with_numpy(model.values, updates, shares),
        "read every byte once": read,
        "kernel, all in one pass": lambda: run_kernel(map),
        "kernel, two threads": lambda: run_kernel(pool.map),
        "aggregate": lambda: aggregate.aggregate(MEAN, name, base, updates, weights),
        "aggregate, norms clipped": lambda: aggregate.aggregate(
            CLIPPED, name, base, updates, weights
        ),
        "hash the new model": lambda: compute_blob_name(base),
    }
    result = aggregate.aggregate(MEAN, name, base, updates, weights)
    assert np.array_equal(
        decode_model(result.model).values, average_with_numpy(model.values, updates, shares)
    )
    read_bytes = dict.fromkeys(candidates, values * clients * bits // 8)
    read_bytes["hash the new model"] = len(base)
    work = compute_aggregation_work(name, [len(data) for _, data in updates])
    gas = GAS_CALL + GAS_PER_UPDATE * clients + work.gas
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
            "reference": lambda: reference.aggregate(MEAN, name, base, updates, [1, 2, 3, 4]),
            "aggregate": lambda: aggregate.aggregate(MEAN, name, base, updates, [1, 2, 3, 4]),
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
    return rows + _run_single()
