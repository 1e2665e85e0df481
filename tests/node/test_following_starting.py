"""The settings that make a node follow, and what it does before it opens its directory."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import encode_genesis
from steelyard.node.clock import Clock
from steelyard.node.config import NodeConfig, StorageConfig, encode_config, parse_config
from steelyard.node.directory import CHAIN, GENESIS_FILE, DirectoryLock
from steelyard.node.following.starting import begin_at_checkpoint, check_start, set_sources
from steelyard.node.store import ChainStore

from .follow_kit import BEGAN, Chain, make_genesis, serve

CLOCK = Clock(get_unix_seconds=lambda: BEGAN + 60.0)
SMALL = NodeConfig(storage=StorageConfig(map_bytes=2**27))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    one = Chain(tmp_path_factory.mktemp("chain"))
    one.grow(3)
    yield one
    one.close()


def test_an_empty_directory_begins_at_its_checkpoint_once(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / GENESIS_FILE).write_bytes(encode_genesis(chain.genesis))
    with serve(chain) as source:
        text = f"3:0x{chain.head.hash.hex()}"
        config = set_sources(SMALL, [source.url], text, trust_genesis=False)
        begin_at_checkpoint(tmp_path, config, lambda _: None, CLOCK)
    begin_at_checkpoint(tmp_path, config, lambda _: None, CLOCK)  # nobody has to answer now
    store = ChainStore(tmp_path / CHAIN, 2**27)
    assert store.get_head() == chain.head
    store.check_upgrades(chain.genesis.rules.forks)
    with pytest.raises(SteelyardError, match="upgrade_late"):
        store.check_upgrades((("fork", 2),))  # others executed block 2 without it
    store.close()


def test_without_a_checkpoint_nothing_is_touched(tmp_path: Path) -> None:
    begin_at_checkpoint(tmp_path, SMALL, lambda _: None, CLOCK)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_left_alone(chain: Chain, tmp_path: Path) -> None:
    config = set_sources(SMALL, ["http://127.0.0.1:9"], f"3:{'00' * 32}", trust_genesis=False)
    lock = DirectoryLock(tmp_path)
    with pytest.raises(SteelyardError, match="data_locked"):
        begin_at_checkpoint(tmp_path, config, lambda _: None, CLOCK)
    lock.release()


def test_the_settings_survive_the_file() -> None:
    config = set_sources(SMALL, ["http://a/", "https://b"], f"3:{'ab' * 32}", trust_genesis=True)
    assert config.follow.nodes == ("http://a", "https://b")
    assert parse_config(encode_config(config)) == config


@pytest.mark.parametrize(
    ("urls", "checkpoint", "trust", "code"),
    [
        ([], "3:" + "00" * 32, False, "follow_missing"),
        ([], None, True, "follow_missing"),
        (["ftp://a"], None, False, "follow_url"),
        (["http://a"], "3", False, "checkpoint_malformed"),
        (["http://a"], "3:0x1234", False, "checkpoint_malformed"),
        (["http://a"], "-3:" + "00" * 32, False, "checkpoint_malformed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    urls: list[str], checkpoint: str | None, trust: bool, code: str
) -> None:
    with pytest.raises(SteelyardError, match=code):
        set_sources(SMALL, urls, checkpoint, trust_genesis=trust)


def test_an_old_genesis_is_followed_only_if_the_operator_says_so() -> None:
    genesis, _ = make_genesis()
    old = Clock(get_unix_seconds=lambda: BEGAN + genesis.unbonding_seconds)
    plain = set_sources(SMALL, ["http://a"], None, trust_genesis=False)
    check_start(genesis, SMALL, old)  # follows nobody
    check_start(genesis, plain, CLOCK)
    with pytest.raises(SteelyardError, match="checkpoint_too_old"):
        check_start(genesis, plain, old)
    check_start(genesis, replace(plain, follow=replace(plain.follow, trust_old_head=True)), old)
