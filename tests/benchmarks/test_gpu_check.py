"""Tests of scripts/gpu_check.sh."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def gpu_check(
    tmp_path: Path, stages: str, interpreter: str, gpu: str = "exit 9"
) -> tuple[int, dict[str, str]]:
    """Runs the script with these lines of shell as nvidia-smi and interpreter.

    Returns:
        Exit status, and stage -> outcome.
    """
    for name, code in (("nvidia-smi", gpu), ("python", interpreter)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "gpu_check.sh", tmp_path / "logs"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHON": str(tmp_path / "python"),
            "GPU_CHECK_STAGES": stages,
        },
        capture_output=True,
        text=True,
    )
    summary = (tmp_path / "logs" / "summary.txt").read_text().splitlines()
    assert all(line in done.stdout for line in summary)
    return done.returncode, {
        line.split()[0]: " ".join(line.split()[1:-1]) for line in summary if line
    }


def test_without_a_gpu_the_rest_of_the_check_runs(tmp_path: Path) -> None:
    log = f'echo "$@" >>{tmp_path}/calls'
    status, outcome = gpu_check(tmp_path, "build sanitizer tournament benchmark report", log)
    assert status == 0
    assert outcome == {
        "build": "passed",
        "memcheck": "skipped (no GPU)",
        "racecheck": "skipped (no GPU)",
        "initcheck": "skipped (no GPU)",
        "tournament": "skipped (no GPU)",
        "host_cost": "skipped (no GPU)",
        "benchmark": "skipped (no GPU)",
        "train_step": "skipped (no GPU)",
        "loading": "skipped (no GPU)",
        "report": "passed",
        "whole": "",
    }
    assert (tmp_path / "calls").read_text().splitlines() == [
        "setup.py egg_info build_ext --inplace",
        "-m benchmarks.report",
    ]


def test_the_check_continues_after_a_failure_and_reports_it(tmp_path: Path) -> None:
    python = f'echo "$2 $TORCH_CUDA_ARCH_LIST" >>{tmp_path}/calls; [ "$2" != egg_info ]'
    status, outcome = gpu_check(tmp_path, "build benchmark report", python, gpu="echo 9.0")
    assert status == 1
    assert outcome == {
        "build": "failed (status 1)",
        "host_cost": "passed",
        "benchmark": "passed",
        "train_step": "passed",
        "loading": "passed",
        "report": "passed",
        "whole": "",
    }
    calls = (tmp_path / "calls").read_text().splitlines()
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0")
    assert calls == [
        f"{name} {architectures}"
        for name in (
            "egg_info",
            "benchmarks.host_cost",
            "benchmarks.kernels",
            "benchmarks.train_step",
            "import nvidia.dali",
            "benchmarks.loading",
            "benchmarks.report",
        )
    ]


def test_the_tournament_comes_before_the_benchmark_and_has_less_time_then(tmp_path: Path) -> None:
    for stages, minutes in (("benchmark tournament", "2"), ("tournament", "8")):
        status, outcome = gpu_check(
            tmp_path, stages, f'echo "$2" "$@" >>{tmp_path}/calls', gpu="echo 9.0"
        )
        assert status == 0
        assert next(iter(outcome)) == "tournament"
        first = (tmp_path / "calls").read_text().splitlines()[0]
        assert first.endswith(f"-m benchmarks.tournament --resume --minutes {minutes}")
        (tmp_path / "calls").unlink()
