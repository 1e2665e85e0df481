"""The kernels give the known answers, compiled or not, and the answers are the oracle's."""

import os
import subprocess
import sys
from dataclasses import replace

from steelyard.chain import selftest

from .make_vectors import make_document

RUN = """
import numba
from steelyard.chain import selftest
print(numba.config.DISABLE_JIT, selftest.run())
"""


def test_the_kernels_give_the_known_answers() -> None:
    assert selftest.run() == []


def test_the_kernels_give_the_known_answers_without_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1 []", "")


def test_the_known_answers_are_those_of_the_reference() -> None:
    assert selftest.VECTORS.read_text(encoding="utf-8") == make_document()


def test_a_wrong_answer_is_named() -> None:
    case = selftest.load_cases()[0]
    wrong = replace(case, expected={**case.expected, "saturated": 1})
    assert selftest.run([wrong]) == ["one update: saturated is 0, not 1"]


def test_a_refusal_that_does_not_happen_is_named() -> None:
    case = replace(selftest.load_cases()[0], expected={"error": "update_value"})
    assert "one update: error is None, not update_value" in selftest.run([case])
