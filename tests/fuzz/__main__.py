"""`python -m tests.fuzz TARGET SECONDS`, and without seconds: keep what was found."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
WORK = HERE.parent.parent / "build" / "fuzz"
MAX_INPUT_BYTES = 4_096
MAX_KEPT_BYTES = 2_048


def fuzz(target: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process, with 77 after a finding."""
    import atheris

    with atheris.instrument_imports(include=["steelyard", "rlp"]):
        from .targets import TARGETS
    from .seeds import list_seeds

    work = WORK / target
    work.mkdir(parents=True, exist_ok=True)
    for seed in list_seeds(target):
        write(work, seed)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", "-timeout=10"]
    limits = ["-rss_limit_mb=2048", f"-artifact_prefix={work}/", "-print_final_stats=1"]
    kept = [str(CORPUS / target)] if (CORPUS / target).is_dir() else []
    atheris.Setup([sys.argv[0], *options, *limits, str(work), *kept], TARGETS[target])
    atheris.Fuzz()


def keep(target: str) -> None:
    """Of all inputs, the smallest first, keep those that reach a line no smaller one reached."""
    from .seeds import list_seeds
    from .targets import TARGETS

    found = [path.read_bytes() for path in (WORK / target).glob("*")]
    found += [path.read_bytes() for path in (CORPUS / target).glob("*")]
    inputs = {one for one in (*found, *list_seeds(target)) if len(one) <= MAX_KEPT_BYTES}
    reached: set[tuple[str, int, int]] = set()
    for path in (CORPUS / target).glob("*"):
        path.unlink()
    for data in sorted(inputs, key=lambda one: (len(one), one)):
        steps = trace(TARGETS[target], data)
        if not steps <= reached:
            reached |= steps
            write(CORPUS / target, data)


def trace(run: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """The steps from line to line in our own source."""
    steps: set[tuple[str, int, int]] = set()

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if "steelyard" not in name:
            return None
        last = frame.f_lineno

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            steps.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    sys.settrace(follow)
    try:
        run(data)
    finally:
        sys.settrace(None)
    return steps


def write(directory: Path, data: bytes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    os.nice(10)
    if len(sys.argv) == 3:
        fuzz(sys.argv[1], int(sys.argv[2]))
    else:
        keep(sys.argv[1])
