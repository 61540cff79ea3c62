"""Records and weights on disk."""

from kdbench.results.folders import Folders
from kdbench.results.store import Store

__all__ = ["Folders", "Store"]
