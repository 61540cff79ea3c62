"""Records and weights on disk."""

from kdbench.store.records import Store

__all__ = ["Store"]
