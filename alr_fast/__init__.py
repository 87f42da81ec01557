"""Adaptive Label Refinement for PyTorch: fused operations, a label bank and a trainer.

Most training loops need only `ALRLoss` and `LabelBank`. `alr_fast.functional` contains the
operations below them, `alr_fast.reference` their definition in plain PyTorch.

Names and modules are imported on first use: the commands begin before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alr_fast._installed import check_library, installed_version, is_command

if TYPE_CHECKING:
    from alr_fast.bank import LabelBank as LabelBank
    from alr_fast.classifier import ALRClassifier as ALRClassifier
    from alr_fast.losses import ALRLoss as ALRLoss

check_library()
if is_command():
    from alr_fast.utils.openmp import prepare_openmp
    from alr_fast.utils.system import provide_home

    prepare_openmp()
    provide_home()
__version__ = installed_version()
__all__ = ["ALRLoss", "LabelBank", "__version__"]

_MODULES = ("bank", "functional", "labels", "losses", "noise", "reference")
_PLACES = {
    "ALRClassifier": "alr_fast.classifier",  # needs scikit-learn
    "ALRLoss": "alr_fast.losses",
    "LabelBank": "alr_fast.bank",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"alr_fast.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_PLACES})
