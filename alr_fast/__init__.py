"""Adaptive Label Refinement for PyTorch: fused operations, a label bank and a trainer.

Most training loops need only `ALRLoss` and `LabelBank`. `alr_fast.functional` contains the
operations below them, `alr_fast.reference` their definition in plain PyTorch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"]:  # `python -m alr_fast...` is looking for the command
    from alr_fast.utils.openmp import prepare

    prepare()

if TYPE_CHECKING:
    from alr_fast.bank import LabelBank as LabelBank
    from alr_fast.classifier import ALRClassifier as ALRClassifier
    from alr_fast.losses import ALRLoss as ALRLoss

    __version__: str

__all__ = ["ALRLoss", "LabelBank", "__version__"]

# Imported on first use: commands set up OpenMP before torch is loaded, and the estimator needs
# scikit-learn.
_NAMES = {
    "ALRClassifier": "alr_fast.classifier",
    "ALRLoss": "alr_fast.losses",
    "LabelBank": "alr_fast.bank",
}
_MODULES = ("bank", "functional", "losses", "reference")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"alr_fast.{name}")
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("alr_fast")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES, "__version__"})
