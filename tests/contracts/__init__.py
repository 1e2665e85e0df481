"""Tests of Tasks and Rounds on our own engine: random sequences against a model in Python."""
