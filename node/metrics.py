"""Prometheus metrics of the node and of its HTTP side. Names are part of the interface."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .records import NetworkTotals

if TYPE_CHECKING:
    from .records import NodeStatus

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
GAUGES: Final = {
    "height": "Height of the finalized head.",
    "timestamp": "Timestamp of the finalized head, in seconds.",
    "epoch": "Epoch of the next block.",
    "view": "Consensus view.",
    "validators": "Validators of this epoch.",
    "is_validator": "1 while this node is one of them.",
    "peers": "Other validators of this epoch that this one reaches.",
    "clock_skew_seconds": "How far this clock is ahead of the other leaders'.",
    "uptime_seconds": "Seconds since the node started.",
    "blocks_built": "Blocks that this validator built since it started.",
    "transactions_finalized": "Transactions finalized since the node started.",
    "mempool_transactions": "Pending transactions.",
    "mempool_bytes": "Bytes of pending transactions.",
    "blob_files": "Blobs on this machine's disk.",
    "blob_bytes": "Bytes of the blobs on this machine's disk.",
    "free_disk_bytes": "Free bytes on the data directory's disk.",
    "last_block_seconds": "Seconds that executing the last block took.",
    "rounds_left": "Due rounds that the keeper leaves unclosed, for want of pay or of money.",
    "account_wei": "Wei on the validator's own account.",
}
"""Fields of NodeStatus, exported as `steelyard_<field>`."""
NETWORK_COUNTERS: Final = {
    "dropped": ("reason", "Messages that were not dealt with."),
    "refused": ("code", "What the mesh did not take, and what broke a rule."),
    "work": ("what", "What was fetched, served and sorted out."),
}
"""Fields of NetworkTotals, exported as `steelyard_network_<field>_total` with that label."""
MUTED: Final = "Peers that are not listened to now."


class NetworkCollector(Collector):
    """Counts that the network keeps itself, shown as counters."""

    def __init__(self) -> None:
        self.totals = NetworkTotals()

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        for name, (label, text) in NETWORK_COUNTERS.items():
            family = CounterMetricFamily(f"steelyard_network_{name}", text, labels=(label,))
            for value, count in sorted(getattr(self.totals, name).items()):
                family.add_metric((value,), count)
            yield family
        yield GaugeMetricFamily("steelyard_peers_muted", MUTED, self.totals.muted)


class Metrics:
    """Counters of the HTTP side, and gauges filled from the node's status when they are read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "steelyard_rpc_calls",
            "RPC calls by method and outcome (ok, or the error's code).",
            ("method", "outcome"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "steelyard_rpc_seconds",
            "Time from a call's arrival to its answer.",
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.uploads = Counter(
            "steelyard_blob_uploads",
            "Blob uploads by outcome (stored, or the error's code).",
            ("outcome",),
            registry=self.registry,
        )
        self.subscribers = self._create_gauge("websockets", "Open WebSockets.")
        self.alarm = Gauge(
            "steelyard_alarm", "1 while the node needs a person.", ("code",), registry=self.registry
        )
        self.gauges = {name: self._create_gauge(name, text) for name, text in GAUGES.items()}

        self._network = NetworkCollector()
        self.registry.register(self._network)

    def observe_call(self, method: str, outcome: str, seconds: float) -> None:
        """Count one RPC call; `method` is one that exists, or "unknown"."""
        self.calls.labels(method, outcome).inc()
        self.seconds.observe(seconds)

    def render(self, status: "NodeStatus", sockets: int) -> bytes:
        """Everything in the text format."""
        for name, gauge in self.gauges.items():
            value = getattr(status, name)
            gauge.set(math.nan if value is None else value)
        self.subscribers.set(sockets)
        self._network.totals = status.network
        self.alarm.clear()
        for code in {status.alarm, *(alarm.code for alarm in status.alarms)} - {None}:
            self.alarm.labels(code).set(1)
        return generate_latest(self.registry)

    def _create_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"steelyard_{name}", text, registry=self.registry)
