"""Decoders against arbitrary bytes: a coverage-guided fuzzer, and its corpus as a test.

    python -m tests.fuzz TARGET SECONDS     fuzz (needs atheris: pip install '.[fuzz]')
    python -m tests.fuzz TARGET             keep what reaches new lines in tests/fuzz/corpus/TARGET

What the fuzzer collects is in build/fuzz/TARGET; a finding is written there as `crash-…` and ends
the run. Add the input to the corpus with the repair, so that it stays repaired.
"""
