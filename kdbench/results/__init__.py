"""Records and weights on disk."""

from kdbench.results.store import Store

__all__ = ["Store"]
