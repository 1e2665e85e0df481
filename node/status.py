"""The node's state in one record: /health, /metrics and `node status` show it."""

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from steelyard import __version__

from .records import NetworkTotals, NodeStatus

if TYPE_CHECKING:
    from .node import Node


def build_status(node: "Node") -> NodeStatus:
    head, alarm = node.get_head(), node.driver.alarm
    current = node.watcher.get_current_set()
    transactions, pool_bytes = node.mempool.get_size()
    files, blob_bytes = node.blobs.get_size()
    genesis_hash = node.store.get_hash(0) or b""
    return NodeStatus(
        version=__version__,
        chain_id=node.rules.chain_id,
        genesis_hash="0x" + genesis_hash.hex(),
        validator="0x" + node.address.hex(),
        height=head.height,
        block_hash="0x" + head.hash.hex(),
        timestamp=head.timestamp,
        view=node.driver.get_view(),
        uptime_seconds=node.clock.get_seconds() - node.started_at,
        blocks_built=node.driver.progress.blocks_built,
        transactions_finalized=node.transactions_finalized,
        mempool_transactions=transactions,
        mempool_bytes=pool_bytes,
        blob_files=files,
        blob_bytes=blob_bytes,
        free_disk_bytes=shutil.disk_usage(node.directory).free,
        last_block_seconds=node.driver.progress.last_block_seconds,
        alarm=None if alarm is None else alarm.code,
        alarm_message=None if alarm is None else alarm.message,
        epoch=current.epoch,
        validators=len(current.members),
        is_validator=current.find(node.address) is not None,
        peers=len(node.watcher.find_reached(current)),
        clock_skew_seconds=node.driver.progress.clocks.estimate(),
        alarms=node.watcher.get_alarms(),
        following=node.following.get_status(),
        network=count_traffic(node),
        genesis_document_hash="0x" + node.genesis.hash.hex(),
        upgrades=tuple(f"{name}={height}" for name, height in node.rules.forks),
        rounds_left=node.count_rounds_left(),
        account_wei=node.get_balance(node.address),
    )


def count_traffic(node: "Node") -> NetworkTotals:
    """The network's totals, and what found no room in the driver's queues."""
    network = node.membership.network
    totals = NetworkTotals() if network is None else network.get_totals()
    full = {f"inbox_{kind}": count for kind, count in node.driver.count_dropped().items()}
    return replace(totals, dropped=totals.dropped | full)
