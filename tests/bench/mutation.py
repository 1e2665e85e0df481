"""Do the tests notice? Single mistakes in the sources of the four contracts.

A mutant is one replacement in one Vyper file. It is compiled, and the games of `conservation` are
played on it until one is violated: killed. What GAMES games do not notice, contracts/tests under
ape is asked about, if ape is there; what passes that too survives and is printed. A mutant that
names its likely killer among those tests is brought before it first.
STEELYARD_MUTANTS picks those whose name or module contains it.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter

from steelyard.chain.artifacts import get_artifact
from tests.contracts.arena import ADDRESSES, Code
from tests.contracts.player import Player, act

from .mutants import TASKS_MUTANTS, Mutant
from .registry_mutants import REGISTRY_MUTANTS
from .rounds_mutants import ROUNDS_MUTANTS
from .seconds_mutants import SECONDS_MUTANTS
from .staking_mutants import STAKING_MUTANTS
from .timing import Measurement

REPOSITORY = Path(__file__).resolve().parents[2]
CONTRACTS = REPOSITORY / "contracts"
GAMES = 12
STEPS_PER_GAME = 300
APE = Path(os.environ.get("STEELYARD_APE", REPOSITORY / ".venv-contracts" / "bin" / "ape"))
APE_SECONDS = 1_800
ALONE = ("Registry", "Staking")
"""Contracts that are tested without the others."""
UNFAIR = "not run_the_code and not run_the_registry and not reason_for_a_refusal"
"""Tests that read the sources or compare the code: they would notice whatever happens."""


@dataclass(frozen=True)
class Fate:
    """How a mutant ended: `killer` is None for a survivor."""

    mutant: Mutant
    killer: str | None
    seconds: float


def write_mutant(mutant: Mutant, folder: Path) -> None:
    """Copy the sources and make the one replacement."""
    for path in CONTRACTS.glob("*.vy"):
        shutil.copy(path, folder)
    path = folder / f"{mutant.module}.vy"
    source = path.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.name}: {source.count(mutant.old)} places"
    path.write_text(source.replace(mutant.old, mutant.new))


def compile_codes(folder: Path, modules: set[str]) -> dict[str, Code]:
    """Compile the contracts that are made of any of these modules; the others are as shipped."""
    import vyper
    from vyper.compiler import compile_from_file_input
    from vyper.compiler.input_bundle import FilesystemInputBundle
    from vyper.compiler.settings import Settings

    assert vyper.__version__
    codes = {}
    for name in ADDRESSES:
        shipped = get_artifact(name)
        codes[name] = Code(shipped.runtime_code, shipped.abi)
        if modules & list_modules(folder, name):
            bundle = FilesystemInputBundle([folder])
            output = compile_from_file_input(
                bundle.load_file(Path(f"{name}.vy")),
                input_bundle=bundle,
                settings=Settings(),
                output_formats=["bytecode_runtime"],
            )
            runtime = bytes.fromhex(output["bytecode_runtime"].removeprefix("0x"))
            codes[name] = Code(runtime, shipped.abi)
    return codes


def list_modules(folder: Path, name: str) -> set[str]:
    """Return the modules that a contract is made of."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            lines = (folder / f"{module}.vy").read_text().splitlines()
            waiting += [line[7:] for line in lines if line.startswith("import ")]
    return found


def hunt(mutant: Mutant) -> Fate:
    """Compile one mutant and play until somebody notices."""
    start = perf_counter()
    killer = ask_ape(mutant, mutant.test) if mutant.test and APE.exists() else None
    if killer is None:
        killer = hunt_by_games(mutant)
    if killer is None and APE.exists():
        killer = ask_ape(mutant, "")
    return Fate(mutant, killer, perf_counter() - start)


def hunt_by_games(mutant: Mutant) -> str | None:
    """Play on what a mutant changes in Tasks and Rounds; return what was violated."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mutant(mutant, folder)
        if not any(mutant.module in list_modules(folder, contract) for contract in ADDRESSES):
            return None
        codes = compile_codes(folder, {mutant.module})
    return next(filter(None, (find_violation(codes, seed) for seed in range(GAMES))), None)


def find_violation(codes: Mapping[str, Code], seed: int) -> str | None:
    """Play one game; return when it was violated, and how."""
    random, player = Random(seed), Player(codes)
    step = 0
    try:
        for step in range(STEPS_PER_GAME):  # noqa: B007
            act(player, random)
        player.finish()
    except Exception as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        return f"game {seed}, step {step}: {words[:70]}"
    return None


def remove_others(mutant: Mutant, folder: Path) -> None:
    """Leave the contracts that a test of this mutant needs: compiling all takes longest."""
    alone = [name for name in ALONE if mutant.module in list_modules(folder, name)]
    needed = alone or list(ADDRESSES)
    modules = set[str]().union(*(list_modules(folder, name) for name in needed))
    for path in folder.glob("*.vy"):
        if path.stem not in modules:
            path.unlink()


def ask_ape(mutant: Mutant, test: str) -> str | None:
    """Run one test, or all, of contracts/tests on the mutant; return the first that fails."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for entry in ("src", "chain", "client", "node", "docs", "ape-config.yaml"):
            (root / entry).symlink_to(REPOSITORY / entry)
        shutil.copytree(CONTRACTS, root / "contracts", ignore=shutil.ignore_patterns("*.pyc"))
        write_mutant(mutant, root / "contracts")
        if test:
            remove_others(mutant, root / "contracts")
        environment = os.environ | {"PATH": f"{APE.parent}:{os.environ['PATH']}"}
        ended = subprocess.run(
            [APE, "test", f"contracts/tests/{test}", "-q", "-x", "-k", UNFAIR],
            cwd=root, env=environment, capture_output=True, text=True, timeout=APE_SECONDS,
            check=False,
        )  # fmt: skip
    failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR c"))]
    if ended.returncode == 0:
        return None
    is_run = failed and "VyperCompileError" not in ended.stdout
    assert is_run, f"{mutant.name}: ape did not run: {ended.stdout[-400:]}{ended.stderr[-400:]}"
    return f"ape: {failed[0].partition(' - ')[0].rpartition('/')[2]}"


def run() -> list[Measurement]:
    """Return a row per mutant; the survivors are printed again at the end."""
    wanted = os.environ.get("STEELYARD_MUTANTS", "")
    known = (
        *TASKS_MUTANTS, *ROUNDS_MUTANTS, *SECONDS_MUTANTS, *REGISTRY_MUTANTS, *STAKING_MUTANTS,
    )  # fmt: skip
    chosen = [mutant for mutant in known if wanted in f"{mutant.name} {mutant.module}"]
    rows, survivors = [], []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for fate in pool.map(hunt, chosen):
            if fate.killer is None:
                survivors.append(fate.mutant.name)
            rows.append(
                Measurement(
                    fate.mutant.name[:40], (fate.killer or "SURVIVED")[:80], fate.seconds, 1.0
                )
            )
            print(f"  {fate.mutant.name}: {fate.killer or 'SURVIVED'}", flush=True)
    print(f"  survivors: {', '.join(survivors) or 'none'}")
    figures = {
        "contract_mutants": len(chosen),
        "contract_mutants_killed": len(chosen) - len(survivors),
    }
    return [*rows, Measurement("all", "killed", 0.0, 1.0, {}, figures)]
