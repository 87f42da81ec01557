"""The state of a label bank as tensors by name, and whether a saved one fits."""

from collections.abc import Mapping

import torch
from torch import Tensor

HISTORY = "history."  # begin of the names of a history's tensors


def as_text(encoded: Tensor | None) -> str | None:
    """The text of a uint8 tensor of UTF-8 bytes."""
    return None if encoded is None else bytes(encoded.tolist()).decode()


def as_bytes(text: str) -> Tensor:
    """A text as a uint8 tensor of UTF-8 bytes."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def check_state(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, allow_other_labels: bool
) -> None:
    """Refuses a saved state that does not fit.

    Args:
        state: The saved state.
        own: The state of the bank that takes it.
        allow_other_labels: Accept other given labels.

    Raises:
        KeyError: An entry is missing.
        TypeError: An entry is not a tensor.
        ValueError: The state is of other samples, of another shape or dtype, or of other labels.
    """
    for name, entry in state.items():
        if not isinstance(entry, Tensor):
            raise TypeError(
                f"bank state has {name} of type {type(entry).__name__}, not a tensor: it is damaged"
            )
    missing = ({"rows", "given_labels"} | own.keys() & {"sample_fingerprint"}) - state.keys()
    if missing:
        raise KeyError(
            f"bank state lacks {sorted(missing)}: it is not a LabelBank.state_dict() of these "
            "samples"
        )
    rows, own_rows = state["rows"], own["rows"]
    if rows.shape != own_rows.shape:
        raise ValueError(
            f"bank state has shape {tuple(rows.shape)}, this bank {tuple(own_rows.shape)}: it "
            "belongs to another data set"
        )
    samples, own_samples = (as_text(s.get("sample_fingerprint")) for s in (state, own))
    if samples != own_samples:
        raise ValueError(
            f"bank state belongs to the samples {samples}, this bank to {own_samples}: use the "
            "sample list (same files, same order) of that run"
        )
    if rows.dtype != own_rows.dtype:
        raise ValueError(
            f"bank state is {rows.dtype}, this bank {own_rows.dtype}: make the bank with "
            f"dtype={rows.dtype}"
        )
    _check_columns(state, len(own_rows))
    rounding = state.get("rounding_state")
    if rounding is not None and (rounding.shape != (2,) or rounding.dtype != torch.int64):
        raise ValueError(
            "bank state has a rounding_state that is not an int64 tensor [2]: it is damaged"
        )
    if (rounding is None) != ("rounding_state" not in own):
        raise ValueError(
            "bank state and bank differ in stochastic rounding: make the bank with "
            + ("rounding_seed=None" if rounding is None else "a rounding_seed")
        )
    if not allow_other_labels and not torch.equal(
        state["given_labels"].cpu(), own["given_labels"].cpu()
    ):
        raise ValueError(
            "bank state started from other given labels: if some were corrected before it was "
            "saved, call LabelBank.correct_labels first; else pass allow_other_labels=True to "
            "LabelBank.load_state_dict if that is intended"
        )


def _check_columns(state: Mapping[str, Tensor], count: int) -> None:
    """Refuses given labels and histories that are not one for each row."""
    for name, tensor in state.items():
        if (name == "given_labels" or name.startswith(HISTORY)) and tensor.shape != (count,):
            raise ValueError(
                f"bank state has {name} of shape {tuple(tensor.shape)} for {count} rows: it is "
                "damaged"
            )
