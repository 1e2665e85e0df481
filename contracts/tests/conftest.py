"""Fixtures for `ape test contracts/tests`, on ape's local py-evm with the real precompile injected.

This environment has no installed `steelyard`: the package is read from the repository's `src`.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from injection import BlobShelf, inject_precompile
from world import World


@pytest.fixture(scope="session")
def shelf():
    shelf = BlobShelf()
    inject_precompile(shelf)
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
