"""The library of candidates: compiled on demand by CMake, called through ctypes."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from alr_fast.errors import UserError
from benchmarks.kernels.problem import OPTIONS
from benchmarks.tournament.candidates import (
    ARITHMETIC,
    FINISHES,
    Candidate,
    Entrant,
    candidates_of,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "tournament"

_NOT_FOR_THIS = "not for this batch"  # of interface.cu
_PARTIALS = 4 * 8192  # floats: row_loss_size of csrc/cuda/launch_plan.h is at most that
_GROUP_BYTES_OF_ROW = 32  # place_groups of csrc/cuda/duplicates.h needs less, and a constant
_LEAST_GROUP_BYTES = 4096
_POLLED_WORDS = 2 * 1024  # for kMaxPolledBlocks of csrc/cuda/launch_plan.h


def build(capability: tuple[int, int], folder: Path = FOLDER) -> Path:
    """Compiles the library for one architecture; what is unchanged is not compiled again.

    Raises:
        UserError: It does not compile.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    commands = (
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, "-DALR_FAST_CUDA=1",
         f"-DALR_FAST_CUDA_ARCH_LIST={'.'.join(map(str, capability))}", "-DALR_FAST_TESTS=OFF",
         f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", folder, "--target", "tournament"],
    )  # fmt: skip
    for command in commands:
        done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True,
                              text=True)  # fmt: skip
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines()[-15:]
            raise UserError("the candidates do not compile:\n" + "\n".join(lines))
    return folder / "libtournament.so"


class _Call(ctypes.Structure):
    """`CandidateCall` of csrc/cuda/tournament/interface.cu."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "classes", "bank_rows", "is_bfloat16",
                                              "arithmetic", "finish", "any_index")),
        *((name, ctypes.c_double) for name in ("momentum", "entropy_weight")),
        *((name, ctypes.c_void_p) for name in ("logits", "bank", "index", "grad", "loss",
                                               "grad_scale", "partials", "counters", "groups",
                                               "polled_words")),
        *((name, ctypes.c_int64) for name in ("partials_bytes", "group_bytes")),
        ("stream", ctypes.c_void_p),
    )  # fmt: skip


class NotForThisBatch(RuntimeError):
    """A candidate cannot take a batch, which is no fault."""


class Library:
    """The functions of the compiled library."""

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        self._functions.alr_candidates.restype = ctypes.c_char_p
        self._functions.alr_launch_candidate.restype = ctypes.c_char_p
        self._functions.alr_launch_candidate.argtypes = [ctypes.c_int, ctypes.POINTER(_Call)]

    def candidates(self) -> list[Candidate]:
        return candidates_of(self._functions.alr_candidates().decode())

    def step(self, entrant: Entrant, bank: Tensor) -> "Step":
        """A step of an entrant over a bank on a GPU."""
        return Step(self._functions.alr_launch_candidate, entrant, bank)


class Step:
    """Calls an entrant: one launch on the current stream, or two for large batches of any index.

    Attributes:
        loss: [1] float32, the mean loss of the last call.
        grad_scale: [1] float32, which the gradient is to be multiplied with: 1 if it is right.
    """

    def __init__(self, launch: Callable[..., bytes | None], entrant: Entrant, bank: Tensor) -> None:
        self._launch, self._line = launch, entrant.candidate.line
        self._any_index = entrant.any_index
        self._memory = {
            "loss": torch.zeros(1, device=bank.device),
            "grad_scale": torch.zeros(1, device=bank.device),
            "partials": torch.zeros(_PARTIALS, device=bank.device),
            "counters": torch.zeros(2, dtype=torch.int64, device=bank.device),
            "polled_words": torch.zeros(_POLLED_WORDS, dtype=torch.int64, device=bank.device),
        }
        self.loss, self.grad_scale = self._memory["loss"], self._memory["grad_scale"]
        self._call = _Call(
            bank_rows=len(bank),
            is_bfloat16=bank.dtype == torch.bfloat16,
            arithmetic=ARITHMETIC.index(entrant.arithmetic),
            finish=FINISHES.index(entrant.finish),
            any_index=entrant.any_index,
            momentum=OPTIONS["momentum"],
            entropy_weight=OPTIONS["entropy_weight"],
            bank=bank.data_ptr(),
            partials_bytes=4 * _PARTIALS,
            **{name: tensor.data_ptr() for name, tensor in self._memory.items()},
        )

    def __call__(self, logits: Tensor, index: Tensor, grad: Tensor) -> None:
        """Writes the gradient and the bank rows.

        Raises:
            NotForThisBatch: The entrant does not finish batches of this shape.
            RuntimeError: The launch fails, or there is no kernel for this shape.
        """
        call = self._call
        call.rows, call.classes = logits.shape
        call.logits, call.index, call.grad = (t.data_ptr() for t in (logits, index, grad))
        if self._any_index and "groups" not in self._memory:
            size = _GROUP_BYTES_OF_ROW * len(logits) + _LEAST_GROUP_BYTES
            groups = torch.zeros(size, dtype=torch.uint8, device=logits.device)
            self._memory["groups"] = groups
            call.groups, call.group_bytes = groups.data_ptr(), size
        call.stream = torch.cuda.current_stream().cuda_stream
        if message := self._launch(self._line, ctypes.byref(call)):
            text = message.decode()
            raise NotForThisBatch(text) if text == _NOT_FOR_THIS else RuntimeError(text)
