"""The client: participants, organisations and auditors. Needs neither EVM nor BLS nor torch.

    from steelyard.client import Client, Result            # a hospital
    from steelyard.client import Organisation, Task, coins # who publishes

Names are imported when they are first used, so that a command starts quickly.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .amounts import coins, format_coins
    from .ancestry import audit_model
    from .audit import audit_replay, audit_round
    from .evidence import audit_evidence
    from .explain import explain_round
    from .keys import create_key, load_key
    from .listing import list_rounds, list_tasks
    from .organisation import Organisation, PublishedTask
    from .participant import Client, Summary
    from .registry import Registry
    from .rpc import Rpc
    from .terms import Task
    from .training import Context, Result

__all__ = [
    "Client",
    "Context",
    "Organisation",
    "PublishedTask",
    "Registry",
    "Result",
    "Rpc",
    "Summary",
    "Task",
    "audit_evidence",
    "audit_model",
    "audit_replay",
    "audit_round",
    "coins",
    "create_key",
    "explain_round",
    "format_coins",
    "list_rounds",
    "list_tasks",
    "load_key",
]

_MODULES = {
    "Client": "participant",
    "Context": "training",
    "Organisation": "organisation",
    "PublishedTask": "organisation",
    "Registry": "registry",
    "Result": "training",
    "Rpc": "rpc",
    "Summary": "participant",
    "Task": "terms",
    "audit_evidence": "evidence",
    "audit_model": "ancestry",
    "audit_replay": "audit",
    "audit_round": "audit",
    "coins": "amounts",
    "create_key": "keys",
    "explain_round": "explain",
    "format_coins": "amounts",
    "list_rounds": "listing",
    "list_tasks": "listing",
    "load_key": "keys",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
