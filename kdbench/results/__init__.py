"""Records and weights on disk."""

from kdbench.results.probe_store import ProbeStore
from kdbench.results.reading import finished_since
from kdbench.results.store import Store

__all__ = ["ProbeStore", "Store", "finished_since"]
