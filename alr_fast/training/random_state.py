"""State of the random number generators of Python, NumPy and PyTorch."""

import math
import random
from typing import cast

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of all generators, as tensors on the CPU."""
    _, python, next_gauss = random.getstate()
    # Annotated as one of two formats; without legacy=False it is this tuple.
    numpy = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    _, numbers, position, has_gauss, gauss = numpy
    python_gauss = math.nan if next_gauss is None else next_gauss
    state = {
        "random.python": torch.tensor(python, dtype=torch.int64),
        "random.python_gauss": torch.tensor(python_gauss, dtype=torch.float64),
        "random.numpy": torch.from_numpy(numbers.astype(np.int64)),
        "random.numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "random.torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores a result of `random_state`."""
    python, gauss = state["random.python"].tolist(), state["random.python_gauss"].item()
    random.setstate((3, tuple(python), None if math.isnan(gauss) else gauss))
    position, has_gauss, gauss = state["random.numpy_rest"].tolist()
    numbers = state["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", numbers, int(position), int(has_gauss), gauss))
    torch.set_rng_state(state["random.torch"])
    if "random.cuda" in state:
        torch.cuda.set_rng_state(state["random.cuda"], device)
