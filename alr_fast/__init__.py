"""Adaptive Label Refinement for PyTorch: fused operations, a label bank and a trainer.

Most training loops need only `ALRLoss` and `LabelBank`. `alr_fast.functional` contains the
operations below them, `alr_fast.reference` their definition in plain PyTorch.
"""

from importlib.metadata import version

from alr_fast.bank import LabelBank
from alr_fast.losses import ALRLoss

__version__ = version("alr_fast")
__all__ = ["ALRLoss", "LabelBank", "__version__"]
