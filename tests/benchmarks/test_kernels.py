"""Tests of `benchmarks.kernels`."""

import dataclasses
import json
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from benchmarks.harness.processes import Failure, serve
from benchmarks.harness.results import slug
from benchmarks.harness.timing import host_turn
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import bandwidth, latency
from benchmarks.kernels.problem import TINY_CASES, WHAT, Case, Problem, dtype_name
from benchmarks.kernels.suites import SIXTEEN_BIT_CLASSES, SUITES, tasks
from benchmarks.kernels.task import COMPILED, Task, skipped
from benchmarks.kernels.waves import task_process
from helpers.benchmark_rows import of_suite

pytest.importorskip("rich", reason="benchmarks need the extra bench")


def test_every_suite_has_rows_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--device", "cpu", "--tiny", "--seconds", "0", "--threads", "1", "--jobs", "3"]
    assert kernels.main([*command, "--results-dir", str(tmp_path)]) == 0
    assert "microseconds a step" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())
    facts = rows[0]["environment"]
    stem = f"{slug(facts['cpu'])}-{facts['date'][:10]}-{facts['commit']}"
    assert path.name == f"{stem}.json"
    measured = [row for row in rows if "skipped" not in row]
    assert [(row["suite"], row["skipped"]) for row in rows if "skipped" in row] == [
        ("pinned", "needs a GPU")
    ]
    variants = {name: [r["variant"] for r in of_suite(measured, name)] for name in SUITES}
    assert variants["latency"] == 2 * ["fused", "fused_and_grad", "eager", "plain", "native_one_op"]
    assert set(variants["bandwidth"]) == {
        "fused_forward", "fused_forward_any_index", "fused_and_grad", "fused", "eager", "plain",
        "compiled", "copy",
    }  # fmt: skip
    for row in measured:
        assert row["environment"] == facts
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        assert row["calls"] >= 3
        assert row["what"] == WHAT[row["variant"]]
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


def test_the_reason_of_a_failed_process_is_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    too_many = (Case(100, 3),)  # the tiny bank has 64 rows
    task = Task("latency", too_many, "cpu", True, 0, 0, 1)
    ours, theirs = Pipe()
    serve(task_process, theirs, (task, 1))
    failure = ours.recv()
    assert isinstance(failure, Failure)
    why = failure.reason
    assert why.startswith("RuntimeError: ")
    row = skipped(task, why, wrong=True)
    assert (row["batch"], row["skipped"], row["wrong"]) == (100, why, True)


def test_a_compilation_that_would_start_too_late_is_skipped() -> None:
    case = TINY_CASES[0]
    task = Task("bandwidth", (case,), "cpu", True, 0, -1, 1)
    rows = bandwidth.bandwidth(task)()
    assert [row["skipped"] for row in rows if row["variant"] == "compiled"] == [
        "not compiled: it was over -1 seconds"
    ]
    assert "fused" in [row["variant"] for row in rows if "skipped" not in row]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the suites of a GPU on the CPU: no graphs, events, profiler, compiler or Triton."""

    def kernel_times(steps, calls):
        return [[[2.0, 1.0]] * calls for _ in steps]

    for suite in (latency, bandwidth):
        monkeypatch.setattr(suite, "Problem", lambda case, device, rows: Problem(case, "cpu", 600))
        monkeypatch.setattr(suite, "device_turn", lambda step, *_: host_turn(step, 1, "cpu")[0])
    monkeypatch.setattr(Problem, "_compile", staticmethod(lambda function, mode: function))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(latency, "capture", lambda step, steps: step)
    monkeypatch.setattr(latency, "kernel_times", kernel_times)


def test_the_latency_rows_of_a_gpu(as_on_a_gpu: None) -> None:
    cases = tuple(Case(batch, 3) for batch in (8, latency.COMPILED_BATCH))
    rows = latency.latency(Task("latency", cases, "cuda", True, 0, 60, 1))()
    measured = [row for row in rows if "skipped" not in row]
    by_mode = {
        mode: [(row["batch"], row["variant"]) for row in measured if row["mode"] == mode]
        for mode in ("eager call", "CUDA graph", "kernel alone")
    }
    called = ["fused", "fused_and_grad", "eager", "plain"]
    small, large = (case.batch for case in cases)
    assert by_mode["eager call"] == [
        *((small, variant) for variant in (*called, "native_one_op")),
        *((large, variant) for variant in (*called, *COMPILED, "native_one_op")),
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
        for task in tasks(
            "bandwidth", device="cpu", tiny=False, seconds=0, compile_seconds=60, threads=1
        )
        if task.cases[0].classes == SIXTEEN_BIT_CLASSES
    )
    dtypes = [(case.dtype, case.stored) for case in task.cases]
    f32, bf16 = torch.float32, torch.bfloat16
    assert dtypes == [(f32, f32), (bf16, f32), (bf16, bf16)]
    small = tuple(Case(8, 40, *pair) for pair in dtypes)
    rows = bandwidth.bandwidth(dataclasses.replace(task, cases=small))()
    found = {
        str(pair): [
            row["variant"]
            for row in rows
            if (row["logits_dtype"], row["bank_dtype"]) == tuple(map(dtype_name, pair))
        ]
        for pair in dtypes
    }
    assert len(found[str(dtypes[0])]) == 8
    for pair in dtypes[1:]:
        assert found[str(pair)] == ["fused_forward", "fused_and_grad", "copy"]
    assert [case.ideal_bytes // 320 for case in small] == [16, 12, 8]
    shares = [row["share_of_copy"] for row in rows if row["variant"] == "copy"]
    assert shares == [1, 1, 1]
