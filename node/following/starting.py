"""Before a node opens its directory: bring an empty one to the checkpoint in its settings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import check_checkpoint_age, parse_checkpoint
from steelyard.chain.genesis import Genesis, build_genesis, schedule_forks

from ..clock import Clock
from ..config import NodeConfig
from ..directory import CHAIN, DirectoryLock, read_genesis
from ..store import ChainStore, FinalBlock
from .checkpoint import CheckpointStart
from .fetcher import Fetcher, check_url
from .sources import Sources


def set_sources(
    config: NodeConfig, urls: Sequence[str], checkpoint: str | None, *, trust_genesis: bool
) -> NodeConfig:
    """The settings of a node that follows these URLs.

    Raises SteelyardError follow_url, checkpoint_malformed; follow_missing without any URL.
    """
    said = "" if checkpoint is None else str(parse_checkpoint(checkpoint))
    if not urls:
        if checkpoint is not None or trust_genesis:
            option = "--trust-genesis" if checkpoint is None else "--checkpoint"
            raise SteelyardError(
                "follow_missing",
                f"{option} is for a node that follows a chain: name one of its nodes, --follow URL",
            )
        return config
    follow = replace(
        config.follow,
        nodes=tuple(check_url(url) for url in urls),
        checkpoint=said,
        trust_old_head=trust_genesis,
    )
    return replace(config, follow=follow)


def check_start(genesis: Genesis, config: NodeConfig, clock: Clock) -> None:
    """Refuse to follow from a genesis whose validators may have left long ago.

    Raises SteelyardError checkpoint_too_old.
    """
    follow = config.follow
    if not follow.nodes or follow.checkpoint or follow.trust_old_head:
        return
    header = build_genesis(genesis).block.header
    check_checkpoint_age(header, int(clock.get_unix_seconds()), genesis.unbonding_seconds)


def begin_at_checkpoint(
    directory: Path, config: NodeConfig, report: Callable[[str], None], clock: Clock | None = None
) -> None:
    """Fetch what a node needs to go on from its checkpoint, unless it is past block 0 already.

    May be killed and run again: what was fetched is kept. Raises SteelyardError data_locked,
    genesis_missing, and what `CheckpointStart.run` raises.
    """
    if not config.follow.checkpoint:
        return
    clock = clock or Clock()
    lock = DirectoryLock(directory)
    try:
        store = ChainStore(directory / CHAIN, config.storage.map_bytes)
        try:
            if store.is_empty() or store.get_head().height == 0:
                genesis = read_genesis(directory)
                fetch_checkpoint(store, genesis, config, report, clock)
        finally:
            store.close()
    finally:
        lock.release()


def fetch_checkpoint(
    store: ChainStore,
    genesis: Genesis,
    config: NodeConfig,
    report: Callable[[str], None],
    clock: Clock,
) -> None:
    state = build_genesis(genesis)
    if store.is_empty():
        first = FinalBlock(state.block, (), state.nodes, (), state.epoch_set)
        store.commit([first], None, {})
    store.check(state.block.hash)
    # Noted while no block was executed: those before the checkpoint never will be.
    store.check_upgrades(schedule_forks(genesis.rules, config.upgrades).forks)
    fetcher = Fetcher()
    try:
        sources = Sources(config.follow.nodes, fetcher, state.block.hash, clock.get_seconds)
        CheckpointStart(store, genesis, state, sources, fetcher, report).run(
            parse_checkpoint(config.follow.checkpoint), int(clock.get_unix_seconds())
        )
    finally:
        fetcher.close()
