"""Losses as modules: `loss = criterion(logits, labels, index)`, one call for every method.

| loss | targets | computed by |
|---|---|---|
| `CrossEntropyLoss` | one-hot given labels | fused, no table |
| `LabelSmoothingLoss` | `(1 - r) I + (r / K) J` by label | fused, no table |
| `SmearingLoss` | any matrix by label | fused |
| `BackwardCorrectionLoss` | inverse transition matrix by label | fused |
| `ForwardCorrectionLoss` | (given labels, noise-adapted prediction) | plain PyTorch |
| `DistillationLoss` | a teacher's probabilities by sample | fused |
| `SELCLoss`, `ALRLoss` | label bank by sample, updated | fused |
| `SATLoss` | label bank by sample, updated; rows weighted | fused, then scaled |
| `ELRLoss` | given labels, and a label bank by sample, updated | plain PyTorch |

One file per family; `base`, `plain` and `arguments` have the common parts. A loss of your own
derives from `PlainLoss`, or from `Loss` if it calls the fused operation.
"""

from alr_fast._operators import LossOptions, LossResult
from alr_fast.losses.alr import ALRLoss, SELCLoss
from alr_fast.losses.base import Loss, WarmUpLoss
from alr_fast.losses.correction import BackwardCorrectionLoss, ForwardCorrectionLoss, SmearingLoss
from alr_fast.losses.cross_entropy import CrossEntropyLoss, LabelSmoothingLoss
from alr_fast.losses.distillation import DistillationLoss
from alr_fast.losses.elr import ELRLoss
from alr_fast.losses.plain import PlainLoss
from alr_fast.losses.refinement import refinement_problem
from alr_fast.losses.sat import SATLoss

# By the name of the method that trains with it.
SHIPPED: dict[str, type[Loss]] = {
    "ce": CrossEntropyLoss,
    "label_smoothing": LabelSmoothingLoss,
    "smearing": SmearingLoss,
    "backward_correction": BackwardCorrectionLoss,
    "forward_correction": ForwardCorrectionLoss,
    "distillation": DistillationLoss,
    "selc": SELCLoss,
    "alr": ALRLoss,
    "sat": SATLoss,
    "elr": ELRLoss,
}

__all__ = [
    "SHIPPED",
    "ALRLoss",
    "BackwardCorrectionLoss",
    "CrossEntropyLoss",
    "DistillationLoss",
    "ELRLoss",
    "ForwardCorrectionLoss",
    "LabelSmoothingLoss",
    "Loss",
    "LossOptions",
    "LossResult",
    "PlainLoss",
    "SATLoss",
    "SELCLoss",
    "SmearingLoss",
    "WarmUpLoss",
    "refinement_problem",
]
