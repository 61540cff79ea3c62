"""Records and weights on disk, and who works on what."""

from kdbench.store.claims import Claims, Work
from kdbench.store.reading import newer
from kdbench.store.records import Store
from kdbench.store.transfers import Transfers

__all__ = ["Claims", "Store", "Transfers", "Work", "newer"]
