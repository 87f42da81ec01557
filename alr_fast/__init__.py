"""Adaptive Label Refinement for PyTorch: fused operations, a label bank and a trainer.

Most training loops need only `ALRLoss` and `LabelBank`. `alr_fast.functional` contains the
operations below them, `alr_fast.reference` their definition in plain PyTorch.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from alr_fast.bank import LabelBank
from alr_fast.losses import ALRLoss

if TYPE_CHECKING:
    from alr_fast.classifier import ALRClassifier as ALRClassifier

__version__ = version("alr_fast")
__all__ = ["ALRLoss", "LabelBank", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "ALRClassifier":  # imported on first use: it needs scikit-learn
        from alr_fast.classifier import ALRClassifier

        return ALRClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
