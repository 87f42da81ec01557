"""Every benchmark runs, at a tiny size, and says what it promises."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from benchmarks import fused_vs_reference, host_cost, report
from benchmarks.harness import results, timing
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import problem, suites
from benchmarks.kernels.problem import TINY_CASES, Problem
from benchmarks.tables import kernels as kernel_tables

pytest.importorskip("rich", reason="benchmarks need the extra bench")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The commands set the number of threads, which would slow down the tests that follow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_fused_vs_reference_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "rows.json"
    fused_vs_reference.main(["--tiny", "--seconds", "0", "--json", str(out)])
    rows = json.loads(out.read_text())
    assert [(row["batch"], row["classes"]) for row in rows] == [
        (case.batch, case.classes) for case in TINY_CASES
    ]
    for row in rows:
        assert row["dtype"] == "float32"
        for name in ("fused_ms", "eager_ms", "compiled_ms", "copy_ms"):
            low, high = row[name.replace("_ms", "_p20_p80_ms")]
            assert 0 < low <= row[name] <= high
        assert row["environment"]["cpu_isa"]
        assert row["environment"]["commit"]
    assert "geometric" in capsys.readouterr().out


def test_fused_vs_reference_leaves_its_rows_among_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_vs_reference, "FOLDER", tmp_path)
    monkeypatch.setattr(fused_vs_reference, "CASES", TINY_CASES[:1])
    monkeypatch.setattr(fused_vs_reference, "measure", lambda *_: copy.deepcopy(CPU_ROW))
    fused_vs_reference.main([])
    (path,) = tmp_path.iterdir()
    assert path.name == "amd-epyc-2026-01-02-abc1234.json"
    (row,) = json.loads(path.read_text())
    assert row == {"suite": "fused_vs_reference", **CPU_ROW}
    fused_vs_reference.main(["--tiny"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("variant", ["fused", "eager", "plain", "fused_forward"])
def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    made = Problem(TINY_CASES[0], bank_rows=64)
    made.check([variant])
    right = made._function
    monkeypatch.setattr(
        made, "_function", lambda name: lambda *a, **k: right(name)(*a, **k) * 1.001
    )
    with pytest.raises(AssertionError, match=f"{variant}: loss is off"):
        made.check([variant])


def test_a_variant_that_writes_elsewhere_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Problem(TINY_CASES[0], bank_rows=64)
    right = made._function

    def wrong(logits, bank, index, **options):
        loss = right("fused")(logits, bank, index, **options)
        bank[(set(range(64)) - set(index.tolist())).pop()] = 0
        return loss

    monkeypatch.setattr(made, "_function", lambda name: wrong)
    with pytest.raises(AssertionError, match="rows of the bank beside"):
        made.check(["fused"])


def test_kernels_on_the_cpu_leaves_rows_of_every_suite(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["--device", "cpu", "--tiny", "--seconds", "0", "--threads", "1", "--jobs", "3"]
    assert kernels.main([*command, "--results-dir", str(tmp_path)]) == 0
    assert "microseconds a step" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())
    facts = rows[0]["environment"]
    stem = f"{results.slug(facts['cpu'])}-{facts['date'][:10]}-{facts['commit']}"
    assert path.name == f"{stem}.json"
    measured = [row for row in rows if "skipped" not in row]
    assert [(row["suite"], row["skipped"]) for row in rows if "skipped" in row] == [
        ("pinned", "needs a GPU")
    ]
    variants = {name: [r["variant"] for r in measured if r["suite"] == name] for name in SUITES}
    assert variants["latency"] == 2 * ["fused", "fused_and_grad", "eager", "plain", "native_one_op"]
    assert set(variants["bandwidth"]) == {
        "fused_forward", "fused_forward_any_index", "fused_and_grad", "fused", "eager", "plain",
        "compiled", "copy",
    }  # fmt: skip
    for row in measured:
        assert row["environment"] == facts
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        assert row["calls"] >= 3
        assert row["what"] == problem.WHAT[row["variant"]]
        assert (row["logits_dtype"], row["bank_dtype"], row["index_dtype"]) == (
            "float32", "float32", "int64",
        )  # fmt: skip
        assert "bank of 64 rows" in row["index_pattern"]
        if row["suite"] == "latency":
            assert row["mode"] == "eager call"
            assert row["launches"] is None
            assert row["host_p50_us"] > 0
        else:
            assert row["ideal_bytes"] == 4 * 8 * 40 * 4
            speed = row["ideal_bytes"] / row["p50_us"] / 1e3
            assert row["gigabytes_per_second"] == pytest.approx(speed)
            assert row["share_of_copy"] > 0
    (roof,) = [row for row in measured if row["variant"] == "copy"]
    assert roof["share_of_copy"] == 1


SUITES = ("latency", "bandwidth", "pinned")


def test_host_cost_leaves_rows_of_every_part(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    host_cost.main(["--device", "cpu", "--seconds", "0", "--results-dir", str(tmp_path)])
    (file,) = tmp_path.glob("*.json")
    rows = {row["variant"]: row for row in json.loads(file.read_text())}
    assert rows.keys() == kernel_tables.PARTS.keys()
    assert all(0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] for row in rows.values())
    assert rows["native step"]["times_native"] == 1
    shown = capsys.readouterr().out
    assert all(part in shown for part in kernel_tables.PARTS)
    page = report.report(results.latest(tmp_path))
    assert f"| {rows['step']['times_native']:.2f} |" in page


def test_a_result_file_is_never_overwritten(tmp_path: Path) -> None:
    facts = CPU_ROW["environment"]
    first, second = results.ResultFile(tmp_path, facts), results.ResultFile(tmp_path, facts)
    first.write([{"suite": "latency", "number": 1, "environment": facts}])
    second.write([{"suite": "latency", "number": 2, "environment": facts}])
    assert second.path.name == first.path.name.replace(".json", "-2.json")
    first.write([{"suite": "latency", "number": 3, "environment": facts}])  # the same run goes on
    assert [json.loads(f.path.read_text())[0]["number"] for f in (first, second)] == [3, 2]
    ((name, rows),) = results.latest(tmp_path).values()
    assert (name, rows[0]["number"]) == (second.path.name, 2)


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    too_many = (problem.Case(100, 3),)  # the tiny bank has 64 rows
    task = suites.Task("latency", too_many, "cpu", True, 0, 0, 1)
    ours, theirs = Pipe()
    kernels._serve(theirs, task, 1)
    kind, why = ours.recv()
    assert kind == "failed"
    assert why.startswith("RuntimeError: ")
    row = suites.skipped(task, why, wrong=True)
    assert (row["batch"], row["skipped"], row["wrong"]) == (100, why, True)


def test_a_compilation_that_would_begin_too_late_is_left_out() -> None:
    case = TINY_CASES[0]
    task = suites.Task("bandwidth", (case,), "cpu", True, 0, -1, 1)
    rows = suites.bandwidth(task)()
    assert [row["skipped"] for row in rows if row["variant"] == "compiled"] == [
        "not compiled: it was over -1 seconds"
    ]
    assert "fused" in [row["variant"] for row in rows if "skipped" not in row]


def test_the_kernels_of_a_profile_are_divided_among_steps_and_calls() -> None:
    spin = "at::cuda::(anonymous namespace)::spin_kernel(long)"
    names = (
        ["warm-up", spin, "a", "b", "Memcpy DtoD", "a", "b", spin, "c", "Memset", "c", spin]
    )  # fmt: skip
    events = [(float(n), name, 10.0 + n) for n, name in enumerate(names)]
    assert timing.split_kernels(events[::-1], 3, 2) == [
        [[12.0, 13.0], [15.0, 16.0]],
        [[18.0], [20.0]],
        [[], []],
    ]
    assert timing.split_kernels([], 1, 2) == [[[], []]]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites of a GPU, on the CPU: without graphs, events, profiler, compiler and Triton."""

    def kernel_times(steps, calls):
        return [[[2.0, 1.0]] * calls for _ in steps]

    monkeypatch.setattr(suites, "Problem", lambda case, device, rows: Problem(case, "cpu", 600))
    monkeypatch.setattr(Problem, "_compile", staticmethod(lambda function, mode: function))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(suites, "capture", lambda step, steps: step)
    monkeypatch.setattr(suites, "device_turn", lambda step, *_: timing.host_turn(step, 1, "cpu")[0])
    monkeypatch.setattr(suites, "kernel_times", kernel_times)


def test_the_latency_rows_of_a_gpu(as_on_a_gpu: None) -> None:
    cases = tuple(problem.Case(batch, 3) for batch in (8, suites.COMPILED_BATCH))
    rows = suites.latency(suites.Task("latency", cases, "cuda", True, 0, 60, 1))()
    measured = [row for row in rows if "skipped" not in row]
    by_mode = {
        mode: [(row["batch"], row["variant"]) for row in measured if row["mode"] == mode]
        for mode in ("eager call", "CUDA graph", "kernel alone")
    }
    called = ["fused", "fused_and_grad", "eager", "plain"]
    small, large = (case.batch for case in cases)
    assert by_mode["eager call"] == [
        *((small, variant) for variant in (*called, "native_one_op")),
        *((large, variant) for variant in (*called, *suites.COMPILED, "native_one_op")),
    ]
    captured = ["fused", "fused_and_grad", "plain"]
    assert by_mode["CUDA graph"] == [(batch, v) for batch in (small, large) for v in captured]
    assert by_mode["kernel alone"] == [(large, "fused_forward")]
    assert all(row["launches"] == 2 for row in measured)
    (alone,) = [row for row in measured if row["mode"] == "kernel alone"]
    assert (alone["p20_us"], alone["p50_us"], alone["p80_us"]) == (3, 3, 3)
    left_out = {(row["variant"], row["batch"]): row for row in rows if "skipped" in row}
    assert left_out.keys() == {(v, b) for v in ("triton", "eager") for b in (small, large)}
    assert not any(row["wrong"] for row in left_out.values())  # Triton needs a GPU


def test_16_bit_cases_have_a_copy_of_their_own(as_on_a_gpu: None) -> None:
    (task,) = (
        task
        for task in suites.tasks(
            "bandwidth", device="cpu", tiny=False, seconds=0, compile_seconds=60, threads=1
        )
        if task.cases[0].classes == suites.SIXTEEN_BIT_CLASSES
    )
    dtypes = [(case.dtype, case.stored) for case in task.cases]
    f32, bf16 = torch.float32, torch.bfloat16
    assert dtypes == [(f32, f32), (bf16, f32), (bf16, bf16)]
    small = tuple(problem.Case(8, 40, *pair) for pair in dtypes)
    rows = suites.bandwidth(dataclasses.replace(task, cases=small))()
    found = {
        str(pair): [
            row["variant"]
            for row in rows
            if (row["logits_dtype"], row["bank_dtype"]) == tuple(map(problem.dtype_name, pair))
        ]
        for pair in dtypes
    }
    assert len(found[str(dtypes[0])]) == 8
    for pair in dtypes[1:]:
        assert found[str(pair)] == ["fused_forward", "fused_and_grad", "copy"]
    assert [case.ideal_bytes // 320 for case in small] == [16, 12, 8]
    shares = [row["share_of_copy"] for row in rows if row["variant"] == "copy"]
    assert shares == [1, 1, 1]


CPU_ROW = {
    "batch": 256,
    "classes": 16,
    "dtype": "float32",
    **{
        f"{variant}_ms": milliseconds
        for variant, milliseconds in zip(
            ("fused", "fused_and_grad", "eager", "compiled", "copy"), (0.2, 0.1, 1, 0.5, 0.01),
            strict=True,
        )
    },
    **{
        f"{variant}_p20_p80_ms": [0.05, 2]
        for variant in ("fused", "fused_and_grad", "eager", "compiled", "copy")
    },
    "calls": 50,
    "environment": {
        "alr_fast": "0.1.0", "torch": "2.15.0", "threads": 2, "cpus": 4, "cpu_isa": "avx2",
        "machine": "x86_64", "device": "cpu", "commit": "abc1234",
        "date": "2026-01-02T03:04:05Z", "cpu": "AMD EPYC", "gpu": None, "driver": None,
        "cuda": None, "triton": None,
    },
}  # fmt: skip


def gpu_row(suite: str, variant: str, batch: int, classes: int, p50: float, **more) -> dict:
    """A made-up row of `benchmarks.kernels`."""
    case = problem.Case(batch, classes)
    facts = {
        **CPU_ROW["environment"], "device": "NVIDIA H200", "gpu": "NVIDIA H200",
        "driver": "580.1", "cuda": "13.2", "triton": "3.9.0",
    }  # fmt: skip
    row = {**suites._facts(suite, case, variant), **more, "environment": facts}
    if "skipped" not in more:
        row |= {"p20_us": p50 - 1, "p50_us": p50, "p80_us": p50 + 1, "calls": 100}
    return row


def made_up_rows() -> list[dict]:
    def speed(share: float) -> dict:
        return {"gigabytes_per_second": 4000 * share, "share_of_copy": share}

    late = "latency"
    rows = [
        gpu_row(late, "fused", 256, 10, 30, mode="eager call", host_p50_us=29.0, launches=2.0),
        gpu_row(late, "native_one_op", 256, 10, 25, mode="eager call", host_p50_us=24.5),
        gpu_row(late, "fused", 256, 10, 3.5, mode="CUDA graph", launches=2.0),
        gpu_row(late, "fused_forward", 256, 10, 2.25, mode="kernel alone", launches=1.0),
        *(
            gpu_row(late, "eager", batch, 10, 0, mode="CUDA graph", skipped="masks", wrong=False)
            for batch in (64, 256)
        ),
        gpu_row("pinned", "fused_and_grad", 1024, 1000, 200, **speed(0.01)),
    ]
    for batch, classes, share in ((4096, 4096, 0.93), (16384, 1000, 0.79), (65536, 256, 0.55)):
        for variant, factor in (("copy", 1 / share), ("fused_forward", 1), ("triton", 0.5)):
            rows.append(gpu_row("bandwidth", variant, batch, classes, 70, **speed(share * factor)))
    return rows


def write_report(folder: Path) -> str:
    out = folder / "README.md"
    report.main(["--results-dir", str(folder / "results"), "--out", str(out)])
    return out.read_text(encoding="utf-8")


def test_a_report_from_no_folder_leaves_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "README.md"
    page.write_text("old")
    with pytest.raises(SystemExit):
        report.main(["--results-dir", str(tmp_path / "typo"), "--out", str(page)])
    assert "typo: name the one that has the rows" in capsys.readouterr().err
    assert page.read_text() == "old"


def test_a_report_of_nothing_says_not_measured(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    text = write_report(tmp_path)
    assert text.count("\nnot measured\n") == len(report._SECTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "results"}


def test_a_report_shows_rows_goals_and_where_they_come_from(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = made_up_rows()
    results.ResultFile(tmp_path / "results", rows[0]["environment"]).write(rows)
    cpu = [{"suite": "fused_vs_reference", **CPU_ROW}]
    results.ResultFile(tmp_path / "results", CPU_ROW["environment"]).write(cpu)
    text = write_report(tmp_path)
    assert "| 256 x 16 | float32 | 0.200 (0.050-2.000) |" in text
    assert "1.000 (0.050-2.000), 5.0x" in text
    assert "**NVIDIA H200**, driver 580.1, CUDA 13.2, torch 2.15.0, Triton 3.9.0" in text
    assert "commit abc1234; `python -m benchmarks.kernels --suite latency`" in text
    assert "| 256 | 10 | 30.0 (29.0-31.0) | not measured |" in text
    assert "| 256 | 10 | 29 | not measured | 24.5 |" in text
    assert "2.2 (1.2-3.2) |" in text
    assert "- eager, CUDA graph: masks (64 x 10, 256 x 10)" in text
    assert "| 4096 | 4096 | float32 | 4000 GB/s (70.0) | 93% (70.0) | ≥ 90%: reached |" in text
    assert "79% (70.0) | ≥ 80%: missed |" in text
    assert "55% (70.0) | ≥ 55%: reached |" in text
    plot = tmp_path / "roofline.png"
    assert f"]({plot.name})" in text
    # The same rows, the same files.
    drawn = plot.read_bytes()
    assert write_report(tmp_path) == text
    assert plot.read_bytes() == drawn
    # A later run of one suite replaces that suite alone.
    later = [copy.deepcopy(row) for row in rows if row["suite"] == "latency"][:1]
    later[0]["environment"] |= {"date": "2026-02-03T00:00:00Z", "commit": "def5678"}
    later[0]["p50_us"] = 12.5
    results.ResultFile(tmp_path / "results", later[0]["environment"]).write(later)
    text = write_report(tmp_path)
    assert "| 256 | 10 | 12.5 (29.0-31.0)" in text
    assert "30.0 (29.0-31.0)" not in text
    assert "≥ 90%: reached" in text
    for path in (tmp_path / "results").glob("nvidia*"):
        path.unlink()
    assert "roofline" not in write_report(tmp_path)
    assert not plot.exists()


def test_a_report_names_a_file_that_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"suite": "latency"}]')
    with pytest.raises(ValueError, match=r"broken\.json holds no rows"):
        results.latest(tmp_path)


INTERPRETED = """
import torch
from alr_fast import reference
from benchmarks import triton_baseline

torch.manual_seed(0)
torch.set_num_threads(1)
options = dict(momentum=0.7, entropy_weight=0.3, unique_index=True)


def run(function, z, bank, index, **more):
    leaf = z.detach().requires_grad_()
    loss = function(leaf, bank, index, **options, **more)
    (grad,) = torch.autograd.grad(1.5 * loss, leaf)
    return loss.detach(), grad, bank


F32, BF16 = torch.float32, torch.bfloat16
for logits, stored in ((F32, F32), (BF16, F32), (BF16, BF16)):
    # One class; short; a power of two; a block with a tail; a loop with and without a tail; a loop
    # in whose second pass and bank kernel a row has two chunks.
    for classes, limit in ((1, 9), (10, 64), (16, 16), (1000, 2048), (130, 64), (128, 64),
                           (9000, 4096)):
        z = (3 * torch.randn(5, classes)).to(logits)
        bank = torch.rand(11, classes).to(stored)
        index = torch.randperm(11)[:5]
        expected = run(reference.alr_loss, z.double(), bank.double(), index)
        found = run(triton_baseline.alr_loss, z, bank.clone(), index, row_limit=limit)
        for name, a, b in zip(("loss", "gradient", "bank"), found, expected, strict=True):
            bound = 2e-2 if a.dtype == BF16 else 5e-6
            error = (a.double() - b).norm()
            assert error <= bound * b.norm() + 1e-7, (logits, stored, classes, name, error)
        rest = sorted(set(range(11)) - set(index.tolist()))
        assert torch.equal(found[2][rest], bank[rest])

first, second = torch.randn(5000), torch.randn(5000).bfloat16()
copies = torch.zeros(5000), torch.zeros(5000, dtype=BF16)
triton_baseline.copy(first, second, *copies, block=1024)
assert torch.equal(copies[0], first) and torch.equal(copies[1], second)
try:
    triton_baseline.alr_loss(z, bank, index, unique_index=False)
except ValueError as error:
    print(error)
"""


def test_the_triton_baseline_is_the_reference() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "needs distinct indices" in done.stdout


def gpu_check(
    tmp_path: Path, stages: str, interpreter: str, gpu: str = "exit 9"
) -> tuple[int, dict[str, str]]:
    """Runs the script with an nvidia-smi and an interpreter that are these lines of shell.

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
    status, outcome = gpu_check(tmp_path, "build sanitizer benchmark report", log)
    assert status == 0
    assert outcome == {
        "build": "passed",
        "memcheck": "skipped (no GPU)",
        "racecheck": "skipped (no GPU)",
        "initcheck": "skipped (no GPU)",
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


def test_the_check_goes_on_after_a_failure_and_reports_it(tmp_path: Path) -> None:
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
