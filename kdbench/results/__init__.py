"""Records and weights on disk, and who works on what."""

from kdbench.results.probe_store import ProbeStore
from kdbench.results.reading import finished_since
from kdbench.results.store import Store
from kdbench.run.claims import Claims, Work

__all__ = ["Claims", "ProbeStore", "Store", "Work", "finished_since"]
