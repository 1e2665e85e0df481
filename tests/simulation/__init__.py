"""The consensus simulator: docs/simulation.md says what it does and how to replay a seed."""
