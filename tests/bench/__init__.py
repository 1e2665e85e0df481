"""Measurements, not tests: `python -m tests.bench` prints them and writes build/bench.json."""
