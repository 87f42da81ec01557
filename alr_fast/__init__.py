"""Adaptive Label Refinement for PyTorch: fused operations, a label bank and a trainer.

`alr_fast.functional` holds the operations, `alr_fast.reference` their definition in plain PyTorch,
`ALRLoss` and `LabelBank` what most training loops need of them.
"""

from importlib.metadata import version

from alr_fast.bank import LabelBank
from alr_fast.losses import ALRLoss

__version__ = version("alr_fast")
__all__ = ["ALRLoss", "LabelBank", "__version__"]
