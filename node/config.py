"""Settings of one node: a TOML file in its data directory. Unknown keys are errors.

These never decide what a valid block is, except `[upgrades]`: protocol constants are in
`chain/params.py`, chain parameters in the genesis document, secrets in encrypted key files.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from steelyard.chain.errors import SteelyardError

CONFIG_FILE = "config.toml"
MAX_PORT = 65_535


class InvalidConfig(SteelyardError):
    """A settings file that this node does not understand."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where the RPC, blobs and gateway listen. Port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: int = 8545

    def __post_init__(self) -> None:
        """Raises InvalidConfig config_value."""
        if not 0 <= self.port <= MAX_PORT:
            raise InvalidConfig("config_value", f"port {self.port} is not in 0 to {MAX_PORT}")


@dataclass(frozen=True, slots=True)
class BlocksConfig:
    """How this validator proposes. The heartbeat of an idle chain is in its genesis document."""

    interval_seconds: float = 0.1
    """Shortest time between two blocks, so that a burst of transactions shares one."""
    build_seconds: float = 1.5
    """A builder stops taking transactions after this long."""


@dataclass(frozen=True, slots=True)
class MempoolConfig:
    """Limits of the pool of pending transactions."""

    max_transactions: int = 4_096
    max_bytes: int = 64 * 2**20
    max_per_sender: int = 64
    min_tip_wei: int = 0
    expiry_seconds: float = 10_800.0
    blob_expiry_seconds: float = 600.0
    """A transaction whose blobs have not all arrived by then leaves the pool."""


@dataclass(frozen=True, slots=True)
class BlobsConfig:
    """Limits of blobs that are not yet in a block."""

    max_pending_bytes: int = 2 * 2**30
    max_uploads: int = 64
    archive: bool = False
    """Keep blobs whose time on the chain is over."""


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Disk: the largest size of the database, and the free space below which production stops."""

    map_bytes: int = 256 * 2**30
    min_free_bytes: int = 256 * 2**20
    keep_states: int = 0
    """Let go of the states of all but the last so many blocks while running; 0 keeps all."""


@dataclass(frozen=True, slots=True)
class CallsConfig:
    """What RPC calls may compute."""

    gas_cap: int = 30_000_000


@dataclass(frozen=True, slots=True)
class KeeperConfig:
    """Steps of due tasks, and the validator's duties, from its own account."""

    enabled: bool = True
    interval_seconds: float = 1.0
    retry_seconds: float = 30.0
    """Wait after a transaction for a task before the next one for the same step."""
    max_in_flight: int = 4
    max_fee_wei: int = 500_000_000_000
    """Never pay more for a unit of gas than this."""
    min_balance_wei: int = 10**17
    """Steps of tasks leave at least this to the account: it is for check-ins."""
    close_unpaid: bool = False
    """Close rounds, and start tasks, that pay less than it costs."""
    unjail: bool = True
    """Return from jail by itself, in the epoch after."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Connections to the other validators. Limits are for each peer and each of the two lanes."""

    listen: str = ""
    """`HOST:PORT`; empty: every interface, at the port of the own endpoint in Staking."""
    peers: tuple[str, ...] = ()
    """`0xADDRESS=HOST:PORT`: where to reach that validator, whatever Staking says."""
    messages_per_second: float = 1_000.0
    bytes_per_second: int = 64 * 2**20
    """What a peer may send; the rest is dropped."""
    queue_messages: int = 1_024
    queue_bytes: int = 16 * 2**20
    """What may wait for a peer; the oldest is dropped."""
    mute_seconds: float = 60.0
    """How long a peer that keeps sending garbage is not listened to."""


@dataclass(frozen=True, slots=True)
class FollowConfig:
    """Following the chain over HTTP: what a node does that is no validator."""

    nodes: tuple[str, ...] = ()
    """Where to fetch from, `http://HOST:PORT`; none of them is trusted. Empty: do not follow."""
    interval_seconds: float = 0.5
    """Between two looks at the sources' heads."""
    forward: bool = True
    """Pass on to the sources the transactions and blobs that clients send here."""
    checkpoint: str = ""
    """`HEIGHT:0xHASH` of the block that an empty directory begins at; empty: from genesis."""
    trust_old_head: bool = False
    """Go on from a head, or from a genesis, that is older than half the unbonding time."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything in `config.toml`; each section may be left out."""

    http: HttpConfig = field(default_factory=HttpConfig)
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    mempool: MempoolConfig = field(default_factory=MempoolConfig)
    blobs: BlobsConfig = field(default_factory=BlobsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    calls: CallsConfig = field(default_factory=CallsConfig)
    keeper: KeeperConfig = field(default_factory=KeeperConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    follow: FollowConfig = field(default_factory=FollowConfig)
    upgrades: Mapping[str, int] = field(default_factory=dict)
    """Rule changes agreed upon after genesis: name, and the first height they hold at. The one
    setting that decides what a valid block is: all nodes of a chain need the same."""


SECTIONS: Mapping[str, type] = {
    "http": HttpConfig,
    "blocks": BlocksConfig,
    "mempool": MempoolConfig,
    "blobs": BlobsConfig,
    "storage": StorageConfig,
    "calls": CallsConfig,
    "keeper": KeeperConfig,
    "network": NetworkConfig,
    "follow": FollowConfig,
}


UPGRADES = "upgrades"
"""The section whose keys are names of rule changes."""


def load_config(directory: Path) -> NodeConfig:
    """Read `config.toml` of a data directory. Raises InvalidConfig."""
    path = directory / CONFIG_FILE
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidConfig(
            "config_missing",
            f"{path} does not exist; create it with `steelyard node init {directory}`",
        ) from None
    except UnicodeDecodeError:
        raise InvalidConfig("config_syntax", f"{path} is not UTF-8 text") from None
    except InvalidConfig as error:
        raise InvalidConfig(error.code, f"{path}: {error.message}") from None


def parse_config(text: str) -> NodeConfig:
    """Read TOML settings. Raises InvalidConfig: config_syntax, config_key, config_value."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig("config_syntax", f"not TOML: {error}") from None
    upgrades = parse_upgrades(document.pop(UPGRADES, {}))
    check_keys("section", document, {**SECTIONS, UPGRADES: dict})
    sections: dict[str, Any] = {
        name: parse_section(name, value) for name, value in document.items()
    }
    return NodeConfig(**sections, upgrades=upgrades)


def parse_upgrades(values: object) -> dict[str, int]:
    """Heights by name. Which names there are, the chain's code knows."""
    if not isinstance(values, dict):
        raise InvalidConfig("config_value", f"[{UPGRADES}] must be a section")
    for name, height in values.items():
        check_value(f"{UPGRADES}.{name}", int, height)
    return values


def parse_section(name: str, values: object) -> object:
    """One section as its record: known keys, right types, positive numbers."""
    if not isinstance(values, dict):
        raise InvalidConfig("config_value", f"[{name}] must be a section")
    kind = SECTIONS[name]
    types = {one.name: one.type for one in fields(kind)}
    check_keys(f"key in [{name}]", values, types)
    checked = {
        key: check_value(f"{name}.{key}", types[key], value) for key, value in values.items()
    }
    return kind(**checked)


def check_keys(what: str, given: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Refuse keys that nothing reads: a misspelt limit must not pass as set."""
    for key in given:
        if key not in known:
            raise InvalidConfig("config_key", f"unknown {what}: {key!r}; known: {', '.join(known)}")


def check_value(name: str, kind: object, value: object) -> object:
    """The value in its field's type. Booleans are not numbers; numbers are not negative."""
    if kind == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise InvalidConfig("config_value", f"{name} must be a list of texts")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise InvalidConfig("config_value", f"{name} must be a {getattr(kind, '__name__', kind)}")
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise InvalidConfig("config_value", f"{name} must be finite and not negative")
    return value


def encode_config(config: NodeConfig) -> str:
    """The settings as TOML, every key written out; `parse_config` reads it back."""
    lines = [
        "# Settings of this node. Unknown keys are errors; a key left out has its default.",
        "",
    ]
    for name, kind in SECTIONS.items():
        section = getattr(config, name)
        lines.append(f"[{name}]")
        for one in fields(kind):
            lines.append(f"{one.name} = {encode_value(getattr(section, one.name))}")
        lines.append("")
    if config.upgrades:
        rows = [f"{encode_value(name)} = {height}" for name, height in config.upgrades.items()]
        lines += [f"[{UPGRADES}]", *rows, ""]
    return "\n".join(lines)


def encode_value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(encode_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
