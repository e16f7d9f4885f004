"""Published representation-learning systems behind one contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Embeddings", "System", "create", "encoder", "list_systems", "load"]

if TYPE_CHECKING:
    from repertory.catalog import create, encoder, list_systems, load
    from repertory.contract import System
    from repertory.embeddings import Embeddings

_HOMES = {"Embeddings": "embeddings", "System": "contract", "create": "catalog", "encoder": "catalog",
          "list_systems": "catalog", "load": "catalog"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: ``import repertory`` loads no torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'repertory' has no attribute '{name}'")
    return getattr(importlib.import_module(f"repertory.{_HOMES[name]}"), name)
