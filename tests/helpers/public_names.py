"""The names that users import: what the reference has, and what its docstrings describe."""

import griffe

from helpers.documents import ROOT

PACKAGE = griffe.load("alr_fast", search_paths=[str(ROOT)], resolve_aliases=True)

# Modules whose names are public: their __all__, or these names.
PUBLIC = {
    "alr_fast": ["ALRClassifier", "ALRLoss", "LabelBank"],
    "alr_fast.bank": None,
    "alr_fast.bank.history": ["SampleHistory"],
    "alr_fast.classifier": None,
    "alr_fast.data": None,
    "alr_fast.errors": ["UserError", "NativeLibraryError", "FallbackWarning"],
    "alr_fast.functional": None,
    "alr_fast.integrations": None,
    "alr_fast.integrations.lightning": ["ALRCallback"],
    "alr_fast.integrations.transformers": ["ALRTrainerMixin"],
    "alr_fast.labels": None,
    "alr_fast.labels.label_studio": ["interface"],
    "alr_fast.losses": None,
    "alr_fast.losses.multilabel": ["multilabel_bank", "two_class_view"],
    "alr_fast.noise": None,
    "alr_fast.noise.transition": [
        *("symmetric_transition", "known_transition", "estimate_anchor", "estimate_confident"),
        "transition_error",
    ],
    "alr_fast.training.methods": ["method"],
}


def public_names():
    """(module, name) of each public name."""
    for module, names in PUBLIC.items():
        if names is None:
            tree = PACKAGE[module.removeprefix("alr_fast.")]
            names = [name for name in tree.exports if not name.startswith("__")]
        yield from ((module, name) for name in names)


def found(module, name):
    """The class, function or value of a public name."""
    entry = PACKAGE[f"{module}.{name}".removeprefix("alr_fast.")]
    return entry.final_target if entry.is_alias else entry


NAMES = sorted(public_names())
