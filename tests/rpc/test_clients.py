"""Unmodified Ethereum tools against a real node: connect, deploy, call, send, wait, read logs."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from .world import CHAIN_ID, HD_PATH, MNEMONIC, World

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
APE = ROOT / ".venv-contracts" / "bin"

pytestmark = pytest.mark.e2e


def run(command: list[str], directory: Path, environment: dict[str, str]) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_unmodified_web3_script_works(world: World, tmp_path: Path) -> None:
    script, contract = HERE / "scripts" / "use_web3.py", HERE / "ape_project/contracts/Counter.vy"
    key = "0x" + bytes(world.accounts[2].key).hex()
    command = [sys.executable, str(script), world.url, key, str(contract)]
    assert "web3: done" in run(command, tmp_path, dict(os.environ))


@pytest.fixture
def ape_project(world: World, tmp_path: Path) -> Path:
    """A project whose only knowledge of this chain is its configuration."""
    directory = tmp_path / "project"
    copytree(HERE / "ape_project", directory)
    (directory / "ape-config.yaml").write_text(
        f"""
name: counter
contracts_folder: contracts
vyper:
  evm_version: cancun
networks:
  custom:
    - name: steelyard
      chain_id: {CHAIN_ID}
      ecosystem: ethereum
      base_ecosystem_plugin: ethereum
      default_provider: node
node:
  ethereum:
    steelyard:
      uri: {world.url}
ethereum:
  default_network: steelyard
  steelyard:
    required_confirmations: 0
    block_time: 1
test:
  mnemonic: {MNEMONIC}
  hd_path: {HD_PATH}
  number_of_accounts: 2
""",
        encoding="utf-8",
    )
    return directory


@pytest.fixture
def ape_environment(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    return {"HOME": str(home), "PATH": f"{APE}:{os.environ['PATH']}", "LANG": "C.UTF-8"}


needs_ape = pytest.mark.skipif(
    not APE.exists(), reason="needs `make test-contracts` to install ape"
)


@needs_ape
def test_an_unmodified_ape_script_works(ape_project: Path, ape_environment: dict[str, str]) -> None:
    command = [str(APE / "ape"), "run", "use_ape", "--network", "ethereum:steelyard:node"]
    assert "ape: done" in run(command, ape_project, ape_environment)


@needs_ape
def test_an_ape_console_works(ape_project: Path, ape_environment: dict[str, str]) -> None:
    code = (
        "counter = accounts.test_accounts[1].deploy(project.Counter, 5)\n"
        "receipt = counter.bump(2, sender=accounts.test_accounts[1])\n"
        "print('console:', counter.value(), [log.value for log in counter.Bumped])\n"
    )
    command = [str(APE / "ape"), "console", "--network", "ethereum:steelyard:node", "--code", code]
    assert "console: 7 [7]" in run(command, ape_project, ape_environment)
