"""kdbench: knowledge-distillation methods for image classifiers, compared under one protocol."""

__version__ = "0.1.0"
