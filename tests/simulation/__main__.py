"""Replay a seed and say what happened: `python -m tests.simulation SEED [MUTANT] [--events]`."""

import sys
from dataclasses import fields

from . import world as simulated
from .mutants import MUTANTS, Mutant
from .scenario import Scenario

UNCHANGED = Mutant(0, "none", "no rule")


class LoudWorld(simulated.World):
    """Prints every event: the instant in ms, the host's slot, and what the trace hashes."""

    def trace_event(self, slot: int, event: simulated.Event) -> None:
        print(f"{self.now:8} {slot:3} view {self.hosts[slot].machine.view:3} ", end="")
        print(simulated.encode_event(event)[:100])
        super().trace_event(slot, event)


def main(arguments: list[str]) -> int:
    """Return 0 if the run is clean, 1 if it is not, 2 if there is no such mutant."""
    is_loud = "--events" in arguments
    seed, *names = (argument for argument in arguments if argument != "--events")
    mutants = {mutant.name: mutant for mutant in (UNCHANGED, *MUTANTS)}
    name = names[0] if names else UNCHANGED.name
    if name not in mutants:
        print(f"no mutant {name}; there are: {', '.join(mutants)}")
        return 2
    scenario = Scenario.draw(int(seed))
    for field in fields(scenario):
        print(f"  {field.name:16} {getattr(scenario, field.name)}")
    with mutants[name].applied() as host:
        kind = LoudWorld if is_loud else simulated.World
        result = simulated.run_seed(int(seed), host, kind)
    print(f"  mutant           {name}: {mutants[name].breaks}")
    for field in fields(result):
        print(f"  {field.name:16} {getattr(result, field.name)}")
    return 1 if result.violation else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
