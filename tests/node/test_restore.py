"""A chain and a signer of different ages never run together; a whole backup does."""

import shutil
from dataclasses import replace as replace_fields
from pathlib import Path

import pytest

from steelyard.chain.consensus.certificates import encode_certificate
from steelyard.chain.consensus.votes import Kind
from steelyard.chain.types import View
from steelyard.node.signer import Signer
from steelyard.node.store import RECOVERY, ChainStore, CorruptData, encode_height

from .world import ALICE, CONFIG, SECRETS, found, open_node, sign_transaction, wait_for


def advance(home: Path, *nonces: int) -> int:
    """Run a node until these transfers are final. Returns the height."""
    node = open_node(home)
    node.start()
    for nonce in nonces:
        wait_for(node, node.submit_transaction(sign_transaction(ALICE, nonce)))
    node.stop()
    return get_height(home)


def get_height(home: Path) -> int:
    node = open_node(home)
    height = node.get_head().height
    node.stop()
    return height


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """What a directory was after two blocks."""
    home = found(tmp_path / "node")
    advance(home, 0, 1)
    return Path(shutil.copytree(home, tmp_path / "backup"))


@pytest.fixture
def home(tmp_path: Path, backup: Path) -> Path:
    """The same directory, two blocks later."""
    home = tmp_path / "node"
    advance(home, 2, 3)
    return home


def replace(home: Path, backup: Path, name: str) -> None:
    shutil.rmtree(home / name)
    shutil.copytree(backup / name, home / name)


def get_refusal(home: Path) -> str:
    with pytest.raises(CorruptData) as caught:
        open_node(home)
    return caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "signer"])
def test_an_older_part_beside_a_newer_one_is_refused_with_advice(
    home: Path, backup: Path, name: str
) -> None:
    replace(home, backup, name)
    message = get_refusal(home)
    other = {"chain": "signer", "signer": "chain"}[name]
    assert f"{name}/ is " in message
    assert f"older than {other}/" in message
    assert "restore the whole directory from one backup" in message
    assert message.count(str(home)) == 1


def test_a_signer_that_is_gone_is_refused(home: Path) -> None:
    shutil.rmtree(home / "signer")
    assert "signer/ is gone" in get_refusal(home)
    assert "signer/ is gone" in get_refusal(home), "the first refusal made an empty one"


@pytest.mark.slow
def test_a_chain_from_before_the_views_that_the_signer_forgot_is_refused(home: Path) -> None:
    node = open_node(home)
    genesis, domain = node.get_hash(0), node.rules.domain
    node.stop()
    assert genesis is not None
    signer = Signer(home / "signer", SECRETS.voting, domain, genesis)
    signer.raise_floor(0, 64)
    signer.close()
    assert "voted in view 64" in get_refusal(home)


@pytest.mark.slow
def test_votes_by_which_the_head_became_final_in_a_later_view_lack_no_block(home: Path) -> None:
    """So it is if a boundary block was proposed again, and we alone are the set after it."""
    node = open_node(home)
    height, genesis, domain = node.get_head().height, node.get_hash(0), node.rules.domain
    certificate = node.get_certificate(height)
    node.stop()
    assert genesis is not None
    assert certificate is not None
    said = replace_fields(certificate.statement, view=View(certificate.view + 3))
    later = replace_fields(certificate, statement=said)
    store = ChainStore(home / "chain", CONFIG.storage.map_bytes)
    with store.database.write() as writer:
        writer.put("certificates", encode_height(height), encode_certificate(later))
    store.close()
    signer = Signer(home / "signer", SECRETS.voting, domain, genesis)
    signer.sign_vote(replace_fields(said, kind=Kind.NOTARIZE), 0)
    signer.sign_vote(said, 0)
    signer.close()
    assert get_height(home) == height


def test_a_whole_backup_goes_on(backup: Path) -> None:
    assert advance(backup, 2) > 2


def test_a_refusal_advises_once(home: Path) -> None:
    shutil.rmtree(home / "chain")
    with pytest.raises(CorruptData) as caught:
        open_node(home)
    assert str(caught.value).count(RECOVERY) == 1
    assert str(caught.value).count(str(home)) == 1


def test_a_broken_database_is_named_once(home: Path) -> None:
    (home / "chain" / "data.mdb").write_bytes(b"\0" * 100)
    message = get_refusal(home)
    assert message.count(str(home)) == 1
    assert message.count(RECOVERY) == 1


def test_recovery_never_advises_a_part_alone() -> None:
    assert "restore the whole directory" in RECOVERY
    assert "never chain/ or signer/ alone" in RECOVERY
