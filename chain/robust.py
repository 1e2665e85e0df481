"""What robust rules decide from norms and distances: whom to clip, leave out, or cap.

Clipping bounds what one update can do by its length. Multi-Krum keeps the updates that lie closest
to their nearest neighbours; equal updates count once, so that copies are no neighbours, and with
fewer than 2f + 3 different ones nothing is promised (docs/protocol.md, section 4). The trimmed mean
decides value by value, in `robust_kernels.py`, by a sorting network made here.

Pure: Python integers. Sources: docs/protocol.md, "Aggregation"; Blanchard et al., Krum,
arXiv:1703.02757; Yin et al., trimmed mean, arXiv:1803.01498; Batcher's network as in Knuth, 5.2.2M.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

from .pages import Measures
from .rules import Flag, Rule, RuleKind
from .shares import compute_capped_shares
from .types import BlobName


@dataclass(frozen=True, slots=True)
class Decision:
    """Shares and flags, in the order of the updates.

    `effective` are the shares that apply to `train` tensors; they sum to at most WEIGHT_TOTAL.
    """

    shares: tuple[int, ...]
    effective: tuple[int, ...]
    flags: tuple[int, ...]


def decide(
    rule: Rule, names: Sequence[BlobName], weights: Sequence[int], measures: Measures | None
) -> Decision:
    """Return what each update counts. `measures` are those of all blocks.

    Raises: InvalidAggregation for the names and weights, nothing for measures of any numbers.
    """
    flags = [Flag(0)] * len(names)
    if rule.kind is RuleKind.MULTI_KRUM:
        assert measures is not None
        flags = choose_by_distance(rule.bound, names, measures.norms2, measures.gram)
    kept = [i for i, flag in enumerate(flags) if not flag]
    chosen = [weights[i] for i in kept]
    kept_shares, capped = compute_capped_shares(
        [names[i] for i in kept],
        chosen if any(chosen) or len(kept) == len(names) else [1] * len(kept),
        rule.max_share,
    )
    shares = [0] * len(names)
    for i, share, is_capped in zip(kept, kept_shares, capped, strict=True):
        shares[i] = share
        flags[i] |= Flag.CAPPED if is_capped else Flag(0)
    effective = list(shares)
    if rule.kind is RuleKind.NORM_CLIPPED_MEAN:
        assert measures is not None
        for i, norm2 in enumerate(measures.norms2):
            if norm2 > rule.bound**2:
                effective[i] = isqrt(shares[i] ** 2 * rule.bound**2 // norm2)
                flags[i] |= Flag.CLIPPED
    return Decision(
        tuple(shares),
        tuple(effective),
        tuple(
            int(flag | (Flag(0) if share else Flag.ZERO_SHARE))
            for flag, share in zip(flags, shares, strict=True)
        ),
    )


def choose_by_distance(
    bound: int, names: Sequence[BlobName], norms2: Sequence[int], gram: Sequence[int]
) -> list[Flag]:
    """Return DUPLICATE or EXCLUDED for the updates that Multi-Krum leaves out, else no flag.

    gram: the dot products of updates i < j, row by row.
    """
    distances = _list_distances(norms2, gram)
    flags = [Flag(0)] * len(names)
    distinct: list[int] = []
    for i in sorted(range(len(names)), key=lambda k: names[k]):
        if any(distances[i][j] == 0 for j in distinct):
            flags[i] = Flag.DUPLICATE
        else:
            distinct.append(i)
    if len(distinct) < 3:
        return flags
    bad = max(0, min(bound, (len(distinct) - 3) // 2))
    near = len(distinct) - bad - 2
    scores = {i: sum(sorted(distances[i][j] for j in distinct if j != i)[:near]) for i in distinct}
    for i in sorted(distinct, key=lambda k: (scores[k], names[k]))[len(distinct) - bad :]:
        flags[i] = Flag.EXCLUDED
    return flags


def _list_distances(norms2: Sequence[int], gram: Sequence[int]) -> list[list[int]]:
    """Return all squared distances; the diagonal is zero."""
    count = len(norms2)
    distances = [[0] * count for _ in range(count)]
    dots = iter(gram)
    for i in range(count):
        for j in range(i + 1, count):
            distance = norms2[i] + norms2[j] - 2 * next(dots)
            distances[i][j] = distances[j][i] = distance
    return distances


@lru_cache(maxsize=8)
def list_comparators(count: int, trimmed: int) -> tuple[tuple[int, int], ...]:
    """Return a network that moves the lowest `trimmed` of `count` first and the highest last.

    A comparator (i, j), i < j, puts the smaller of two values at i. From Batcher's network, less
    the last comparators that would only sort within the lowest, the highest or the rest.
    """
    found: list[tuple[int, int]] = []
    top = 1 << max(count - 1, 1).bit_length() - 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            found += [(i, i + d) for i in range(count - d) if i & p == r]
            d, q, r = q - p, q // 2, p
        p //= 2
    return _drop_idle(found, count, trimmed)


def _drop_idle(
    comparators: Sequence[tuple[int, int]], count: int, trimmed: int
) -> tuple[tuple[int, int], ...]:
    """Drop, from the last one on, what only exchanges values of one kind."""
    kinds = [(i >= trimmed) + (i >= count - trimmed) for i in range(count)]
    is_read = [False] * count
    kept: list[tuple[int, int]] = []
    for i, j in reversed(comparators):
        if kinds[i] == kinds[j] and not is_read[i] and not is_read[j]:
            continue
        is_read[i] = is_read[j] = True
        kept.append((i, j))
    return tuple(reversed(kept))
