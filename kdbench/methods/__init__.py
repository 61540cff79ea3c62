"""The distillation methods, one file each; every file is found by itself. See CONTRIBUTING.md.

In a checkout they lie in `methods/` at its root, which this package's path includes; an installed wheel has them here.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "methods"
if _CHECKOUT.is_dir():
    __path__.append(str(_CHECKOUT))
