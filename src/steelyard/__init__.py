"""Steelyard: a proof-of-stake sidechain that weighs machine-learning updates."""

__version__ = "0.1.0"
