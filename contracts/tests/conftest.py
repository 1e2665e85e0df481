"""Fixtures for `ape test contracts/tests`: ape's local py-evm with the real precompiles in it.

This environment has no installed `steelyard`: the package is read from the repository's `src`.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from injection import BlobShelf, inject_precompiles
from stage import Stage
from world import World


@pytest.fixture(scope="session")
def shelf():
    shelf = BlobShelf()
    inject_precompiles(shelf)
    return shelf


@pytest.fixture(scope="session")
def compiled(project):
    """The project without ape's cache, which does not notice a change in an imported module."""
    project.load_contracts(use_cache=False)
    return project


@pytest.fixture(scope="session")
def deployed(compiled, accounts, shelf):
    return accounts[0].deploy(compiled.Tasks)


@pytest.fixture
def world(deployed, accounts, chain, shelf):
    shelf.clear()
    return World(deployed, accounts, chain, shelf)


@pytest.fixture
def stage(compiled, accounts, chain, shelf):
    return Stage(compiled.Staking, accounts, chain)
