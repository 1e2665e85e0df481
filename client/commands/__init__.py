"""The client's commands. Each is imported when it is first asked for."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audits import app as audit
    from .clients import app as client
    from .keyfiles import app as keys
    from .models import app as model
    from .projects import app as new
    from .registries import app as registry
    from .rounds import app as round
    from .tasks import app as task

__all__ = ["audit", "client", "keys", "model", "new", "registry", "round", "task"]

_MODULES = {
    "audit": "audits",
    "client": "clients",
    "keys": "keyfiles",
    "model": "models",
    "new": "projects",
    "registry": "registries",
    "round": "rounds",
    "task": "tasks",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{_MODULES[name]}", __name__).app
