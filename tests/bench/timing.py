"""Fair timing: candidates take turns, so that a noisy neighbour hurts them alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter


@dataclass(frozen=True)
class Measurement:
    """One row of a table: the median of a candidate and what it is compared with."""

    case: str
    name: str
    seconds: float
    ratio: float
    notes: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    """What the report names by itself, beside the rows."""

    @property
    def line(self) -> str:
        """The row as printed; the ratio is that of the first candidate's time to this one's."""
        notes = "".join(f"  {value:10.2f} {key}" for key, value in self.notes.items())
        return (
            f"  {self.case:26} {self.name:26} {self.seconds * 1e3:9.2f} ms"
            f"  {self.ratio:6.2f}x{notes}"
        )

    @property
    def fields(self) -> dict[str, object]:
        """The row as written to the report."""
        return {
            "case": self.case,
            "name": self.name,
            "seconds": self.seconds,
            "ratio": self.ratio,
            **self.notes,
        }


def measure(
    case: str, candidates: Mapping[str, Callable[[], object]], repeats: int
) -> list[Measurement]:
    """Return the medians of interleaved runs; ratios are against the first candidate."""
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            start = perf_counter()
            run()
            times[name].append(perf_counter() - start)
    medians = {name: median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    return [Measurement(case, name, value, first / value) for name, value in medians.items()]
