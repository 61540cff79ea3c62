"""Records and weights on disk."""

from kdbench.store.records import Store
from kdbench.store.transfers import Transfers

__all__ = ["Store", "Transfers"]
