"""Hostile input gives the same bits or the same code in the kernels and in the oracle."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from steelyard.chain import aggregate, payloads

from .hostile_rounds import compare_rounds

ENDS = {
    "answered",
    "aggregation_bound",
    "aggregation_cap",
    "aggregation_count",
    "aggregation_duplicate",
    "aggregation_momentum",
    "aggregation_rule_count",
    "aggregation_server_lr",
    "aggregation_weight",
    "page_cover",
    "page_format",
    "page_inputs",
    "page_length",
    "page_value",
    "update_exponent",
    "update_overflow",
    "update_value",
    "velocity_format",
    "velocity_length",
    "velocity_range",
    "velocity_unused",
}


@pytest.mark.slow
def test_hostile_rounds_end_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "RANGE_BLOCKS", 1)
    ends = compare_rounds(range(400))
    assert ends.keys() >= ENDS, "the rounds have become too tame to prove anything"


@pytest.mark.slow
def test_hostile_rounds_end_alike_without_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.chain.hostile_rounds", "1000", "4"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "'answered'" in done.stdout


def double(number):
    return 2 * number


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x05\x95"])
@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
def test_a_damaged_cache_of_kernels_stops_nobody(
    damage: bytes, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compile_kernel = payloads.kernel(numba.types.int64(numba.types.int64))
    assert compile_kernel(double)(2) == 4
    (file,) = tmp_path.rglob(pattern)
    file.write_bytes(damage)
    assert compile_kernel(double)(3) == 6
