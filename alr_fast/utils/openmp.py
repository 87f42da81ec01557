"""How the threads of OpenMP work in a command. It reads its environment when torch is loaded.

A library must not change the environment of a program; only commands call `prepare_openmp`.
"""

import os
import sys

from alr_fast.utils.machine import affine_cores, usable_cores

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_SPINS = "1000"  # some microseconds
_THREADS = "OMP_NUM_THREADS"
_limited = False


def prepare_openmp() -> None:
    """Sets up OpenMP where the user has not; does nothing once torch is loaded.

    Threads that wait for each other spin for milliseconds by default, on a processor that the
    thread they wait for may need. libgomp, which torch ships, here spins as briefly as it does by
    itself if it knows that there are more threads than cores. A container may use less time than
    its cores have: its quota limits the number of threads.
    """
    global _limited
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    if _THREADS not in os.environ and usable_cores() < affine_cores():
        os.environ[_THREADS] = str(usable_cores())
        _limited = True


def limited_threads() -> str | None:
    """A line for the user if the number of threads is that of a quota; else None."""
    if not _limited:
        return None
    return (
        f"threads: {os.environ[_THREADS]}, by the processor quota of this container, instead of "
        f"one for each of its {affine_cores()} cores; OMP_NUM_THREADS changes it"
    )
