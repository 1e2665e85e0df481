"""A thin client: everything but replay works without EVM, BLS, numba, torch and node parts."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib, pkgutil, sys
from importlib.abc import MetaPathFinder

ABSENT = {"eth", "trie", "numba", "llvmlite", "py_ecc", "pyblst", "torch", "lmdb", "starlette",
          "uvicorn", "prometheus_client", "zmq", "nacl", "sha3", "web3", "vyper",
          "safetensors", "sklearn"}

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
        return None

sys.meta_path.insert(0, Absent())
import steelyard.client as package

SKIPPED = {"steelyard.client.torch", "steelyard.client.replaying"}
for info in pkgutil.walk_packages(package.__path__, "steelyard.client."):
    if info.name in SKIPPED or info.name.startswith("steelyard.client.demo"):
        continue
    importlib.import_module(info.name)
for name in package.__all__:
    getattr(package, name)
loaded = ABSENT & {name.split(".")[0] for name in sys.modules}
assert not loaded, loaded

from pathlib import Path
from tests.client.conftest import HOSPITAL, ORGANISATION, make_task, open_account, train
from tests.client.ledger import Ledger
from steelyard.client import Client, Organisation
from steelyard.client.finality import can_check_certificates

ledger, directory = Ledger(), Path(sys.argv[1])
with open_account(Organisation, ledger, ORGANISATION, directory / "o") as organisation:
    task = organisation.publish(make_task()).number
with open_account(Client, ledger, HOSPITAL, directory / "h") as hospital:
    hospital.train(train)
    assert hospital.run(task, samples=50).claimed == 1000
assert not can_check_certificates()
from steelyard.chain import reference
print("works")
"""
REPLAY = """
from steelyard.client.commands import audit
audit(["replay", "--node", "http://127.0.0.1:1"], prog_name="audit")
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_client_needs_neither_evm_nor_bls_nor_torch_nor_numba(tmp_path: Path) -> None:
    done = run(SCRIPT, str(tmp_path))
    assert done.stdout == "works\n", done.stderr


def test_replay_without_the_evm_names_what_is_missing(tmp_path: Path) -> None:
    blocked = SCRIPT.split("import steelyard.client as package", maxsplit=1)[0] + REPLAY
    done = run(blocked, str(tmp_path))
    assert done.returncode != 0
    assert "audit_extra: replaying needs eth: pip install 'steelyard[audit]'" in done.stderr
