"""Fixtures for `ape test contracts/tests`: ape's local py-evm with the real precompiles in it.

This environment has no installed `steelyard`: the package is read from the repository's `src`.
"""

import sys
from pathlib import Path

import pytest
from eth.constants import GENESIS_PARENT_HASH
from eth.vm.forks.prague.computation import PragueComputation

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from eth_utils import to_checksum_address
from injection import BlobShelf, CallRecorder, inject_precompiles, install_code
from stage import Stage
from wallet import SOURCE
from world import World

from steelyard.chain.params import EVIDENCE_ADDRESS, ROUNDS_ADDRESS, TASKS_ADDRESS

HERE = Path(__file__).resolve().parent
LAST = "every_entry_point"
"""In the names of tests that judge what all the others have called."""


def pytest_collection_modifyitems(config, items):
    """Put the tests of what was called behind all others; leave them out of a run of some."""
    last = [item for item in items if LAST in item.name]
    items[:] = [item for item in items if item not in last]
    has_all = {item.path for item in items} >= set(HERE.glob("test_*.py"))
    if has_all and not config.option.keyword and not config.option.markexpr:
        items += last
    else:
        config.hook.pytest_deselected(items=last)


@pytest.fixture(scope="session", autouse=True)
def recorder():
    recorder = CallRecorder()
    recorder.install()
    return recorder


@pytest.fixture(scope="session", autouse=True)
def haste(accounts):
    """Answer once what ape and web3 work out anew for each call: half of the time of these tests.

    ape builds the classes of all networks to learn the type of a transaction and runs each one
    again to look for what `print` wrote (we use none), eth_tester executes a block again to go
    back to it, web3 lists all accounts to fill in the sender of a view, and eth_hash takes the
    slower of its libraries.
    """
    # Imported when ape has imported them: under pytest some of it warns.
    from ape_ethereum.ecosystem import Ethereum
    from ape_ethereum.transactions import Receipt, TransactionType
    from eth_hash.auto import keccak
    from eth_hash.utils import load_backend
    from eth_tester.backends.pyevm.main import PyEVMBackend
    from web3.providers.eth_tester import middleware

    first = accounts[0].address
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ethereum, "default_transaction_type", TransactionType.DYNAMIC)
        patch.setattr(Receipt, "show_debug_logs", lambda receipt: None)
        patch.setattr(PyEVMBackend, "revert_to_snapshot", revert_to_snapshot)
        patch.setattr(middleware, "guess_from", lambda web3, transaction: first)
        patch.setattr(keccak, "hasher", load_backend("pysha3").keccak256)
        yield


@pytest.fixture(scope="session", autouse=True)
def steady_time():
    """Let each block be one second after its parent, unless a test says more.

    py-evm takes the wall clock where that is later. A machine that stands still for some seconds
    would move the chain on in the middle of a test, and ape's `isolate` fails when it cannot give
    the next block the second that it had before.
    """
    from eth._utils import headers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "eth_now", lambda: 0)
        yield


def revert_to_snapshot(backend, block_hash):
    """Make that block the newest again."""
    chain, database = backend.chain, backend.chain.chaindb
    header = database.get_block_header_by_hash(block_hash)
    database._set_as_canonical_chain_head(database.db, header, GENESIS_PARENT_HASH)
    chain.header = chain.create_header_from_parent(header)


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
def deployed(compiled, accounts, chain, shelf):
    """Tasks and Rounds, which know each other by the addresses that genesis gives them.

    What the first test of a session does stays: ape takes its snapshot before this fixture.
    """
    contracts = []
    for name, address in (("Tasks", TASKS_ADDRESS), ("Rounds", ROUNDS_ADDRESS)):
        contract = getattr(compiled, name)
        code = bytes(contract.contract_type.get_runtime_bytecode())
        install_code(chain, address, code)
        contracts.append(contract.at(to_checksum_address(address), fetch_from_explorer=False))
    return contracts


@pytest.fixture
def world(deployed, accounts, chain, shelf):
    shelf.clear()
    return World(*deployed, accounts, chain, shelf)


@pytest.fixture
def stage(compiled, accounts, chain, shelf):
    return Stage(compiled.Staking, accounts, chain)


@pytest.fixture(scope="session")
def wallet_type(compilers):
    return compilers.compile_source("vyper", SOURCE)


@pytest.fixture
def no_evidence_precompile(monkeypatch, shelf):
    """A chain where nothing answers at the evidence precompile's address."""
    others = {**PragueComputation._precompiles}
    del others[EVIDENCE_ADDRESS]
    monkeypatch.setattr(PragueComputation, "_precompiles", others)
