"""Compile the contracts into `chain/artifacts/`, where genesis, node and client read them.

    python contracts/build.py [--check]

The settings are in each contract's pragmas, so that ape compiles to the same bytes. With `--check`
nothing is written; the exit code is 1 if a committed artifact differs.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import vyper
from eth_utils import keccak
from vyper.compiler import compile_from_file_input
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.compiler.settings import Settings

CONTRACTS = Path(__file__).resolve().parent
ARTIFACTS = CONTRACTS.parent / "chain" / "artifacts"
NAMES = ("Registry", "Rounds", "Staking", "Tasks")
MAX_RUNTIME_BYTES = 24_576 - 512
"""EIP-170, less half a KiB kept free for repairs."""


def list_sources(name: str) -> list[Path]:
    """Return the Vyper files that a contract is made of: its own and all that it imports."""
    found: dict[str, Path] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = CONTRACTS / f"{module}.vy"
            waiting += re.findall(r"^import (\w+)$", found[module].read_text(), re.MULTILINE)
    return [found[module] for module in sorted(found)]


def compute_source_hash(name: str) -> str:
    """SHA-256 over names and contents of a contract's Vyper files, in the order of their names."""
    digest = hashlib.sha256()
    for path in list_sources(name):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return "0x" + digest.hexdigest()


def build_artifact(name: str) -> str:
    """Compile one contract; return its artifact as canonical JSON."""
    bundle = FilesystemInputBundle([CONTRACTS])
    output = compile_from_file_input(
        bundle.load_file(Path(f"{name}.vy")),
        input_bundle=bundle,
        settings=Settings(),
        output_formats=["abi", "bytecode", "bytecode_runtime"],
    )
    init_code = bytes.fromhex(output["bytecode"].removeprefix("0x"))
    runtime_code = bytes.fromhex(output["bytecode_runtime"].removeprefix("0x"))
    assert len(runtime_code) <= MAX_RUNTIME_BYTES, f"{name}: {len(runtime_code)} bytes"
    artifact = {
        "name": name,
        "compiler": f"vyper {vyper.__version__}",
        "source_sha256": compute_source_hash(name),
        "init_code": "0x" + init_code.hex(),
        "init_keccak": "0x" + keccak(init_code).hex(),
        "runtime_code": "0x" + runtime_code.hex(),
        "runtime_keccak": "0x" + keccak(runtime_code).hex(),
        "abi": output["abi"],
    }
    return json.dumps(artifact, indent=1, sort_keys=True) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, report differences")
    check = parser.parse_args().check
    ARTIFACTS.mkdir(exist_ok=True)
    differing = []
    for name in NAMES:
        path, text = ARTIFACTS / f"{name}.json", build_artifact(name)
        if not path.exists() or path.read_text() != text:
            differing.append(name)
            if not check:
                path.write_text(text)
    word = "differs: " if check else "written: "
    print(word + ", ".join(differing) if differing else "artifacts are up to date")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
