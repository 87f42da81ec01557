"""Made-up rows of benchmarks, and the page that shows rows."""

from pathlib import Path

from benchmarks import report
from benchmarks.harness.results import ResultFile
from benchmarks.kernels.problem import Case
from benchmarks.kernels.task import first_columns

CPU = {
    "alr_fast": "0.1.0", "torch": "2.15.0", "threads": 2, "cpus": 4, "cpu_isa": "avx2",
    "machine": "x86_64", "device": "cpu", "commit": "abc1234", "date": "2026-01-02T03:04:05Z",
    "cpu": "AMD EPYC", "gpu": None, "driver": None, "cuda": None, "triton": None,
}  # fmt: skip
GPU = {**CPU, "device": "NVIDIA H200", "gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.2",
       "triton": "3.9.0"}  # fmt: skip

# Of `benchmarks.fused_vs_reference`.
_MEDIANS = {"fused": 0.2, "fused_and_grad": 0.1, "eager": 1, "compiled": 0.5, "copy": 0.01}
CPU_ROW = {
    "suite": "fused_vs_reference",
    "batch": 256,
    "classes": 16,
    "dtype": "float32",
    **{f"{variant}_ms": milliseconds for variant, milliseconds in _MEDIANS.items()},
    **{f"{variant}_p20_p80_ms": [0.05, 2] for variant in _MEDIANS},
    "calls": 50,
    "environment": CPU,
}


def gpu_row(suite: str, variant: str, batch: int, classes: int, p50: float, **more) -> dict:
    """A row of `benchmarks.kernels`."""
    row = {**first_columns(suite, Case(batch, classes), variant), **more, "environment": GPU}
    if "skipped" not in more:
        row |= {"p20_us": p50 - 1, "p50_us": p50, "p80_us": p50 + 1, "calls": 100}
    return row


def of_suite(rows: list[dict], suite: str) -> list[dict]:
    """The rows of a suite."""
    return [row for row in rows if row["suite"] == suite]


def write_page(folder: Path, rows: list[dict] = ()) -> str:
    """Adds a result file to the results in a folder; returns the README.md written there."""
    if rows:
        ResultFile(folder / "results").write(rows)
    page = folder / "README.md"
    report.main(["--results-dir", str(folder / "results"), "--out", str(page)])
    return page.read_text(encoding="utf-8")
