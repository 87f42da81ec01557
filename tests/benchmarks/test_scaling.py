"""Tests of `benchmarks.scaling`."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from alr_fast.bank.file import BankFileWriter
from benchmarks.harness.memory import MemoryWatch
from benchmarks.harness.processes import Child
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import bank as scaling_bank
from benchmarks.scaling import ranks as scaling_ranks
from benchmarks.scaling import step_cost
from benchmarks.scaling.bank import TINY_CASES
from benchmarks.scaling.bank_phases import BankRun, Case
from benchmarks.scaling.ranks import Group, combinations
from benchmarks.scaling.step_cost import TINY_POINTS
from benchmarks.tables.scaling import PHASES, phase_key
from helpers.benchmark_rows import of_suite, write_page

pytest.importorskip("rich", reason="benchmarks need the extra bench")
pytest.importorskip("timm", reason="training needs the extra train")
pytest.importorskip("safetensors", reason="training needs the extra train")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of the command, with its large bank."""
    folder = tmp_path_factory.mktemp("scaling")
    out = folder / "rows.json"
    options = ["--tiny", "--large", "--threads", "1", "--seconds", "0"]
    scaling.main([*options, "--folder", str(folder), "--json", str(out)])
    assert list(folder.iterdir()) == [out]
    return json.loads(out.read_text())


def test_every_number_of_processes_has_a_row(rows: list[dict]) -> None:
    found = {(row["processes"], row["threads"]): row for row in of_suite(rows, "ranks")}
    scale = scaling_ranks.TINY
    assert list(found) == combinations(next(iter(found.values()))["cpus"])
    for (processes, threads), row in found.items():
        assert row["environment"]["cpu_isa"]
        assert (row["batch"], row["batch_per_process"]) == (scale.batch, scale.batch // processes)
        low, high = row["images_per_second_p20"], row["images_per_second_p80"]
        assert 0 < low <= row["images_per_second"] <= high
        assert row["images_per_second"] == pytest.approx(scale.batch / row["step_ms"] * 1e3)
        assert row["gradient_bytes"] > 40_000
        assert (row["rounds"], row["steps_per_turn"]) == (3, scale.turn)
        assert row["times_one_process"] > 0
        assert ("note" in row) == (processes * threads > row["cpus"])
        if processes == 1:
            assert row["times_one_process"] == 1
            assert "alone_ms" not in row
        else:
            assert row["alone_ms"] > 0 and row["all_reduce_ms"] > 0
            assert "together_ms" in row


def test_the_cpus_are_divided() -> None:
    assert combinations(1) == [(1, 1), (2, 1), (4, 1)]
    assert combinations(2) == [(1, 2), (1, 1), (2, 1), (4, 1)]
    assert combinations(16) == [(1, 16), (1, 8), (1, 4), (2, 8), (4, 4)]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([("a", "b"), ("c", "d")], "weights differ"),
        ([("a", "b"), ("a", "b")], "saw the same samples"),
        ([("a", "a"), ("a", "b")], "gradients did not travel"),
        ([("a", "b"), ("a", "c")], None),
    ],
)
def test_processes_that_do_not_train_together_are_detected(
    monkeypatch: pytest.MonkeyPatch, answers: list, why: str | None
) -> None:
    found = [{"together": a, "alone": b, "gradient_bytes": 4} for a, b in answers]
    group = object.__new__(Group)
    group.processes = 2
    monkeypatch.setattr(group, "_receive", lambda: found)
    if why is None:
        assert group.check() == 4
        return
    with pytest.raises(AssertionError, match=why):
        group.check()


def test_every_bank_has_a_row(rows: list[dict]) -> None:
    found = of_suite(rows, "bank")
    assert len(found) == len(TINY_CASES)
    for row, case in zip(found, TINY_CASES, strict=True):
        assert (row["samples"], row["classes"]) == (case.samples, case.classes)
        assert (row["dtype"], row["placement"]) == (
            str(case.dtype).removeprefix("torch."),
            case.placement,
        )
        assert row["bytes"] == case.num_bytes
        for phase in PHASES:
            name = phase_key(phase)
            assert 0 < row[f"{name}_p20"] <= row[name] <= row[f"{name}_p80"]
        assert row["export_bytes"] > row["bytes"] + 8 * case.samples
        assert row["checkpoint_bytes"] > row["bytes"] + 8 * case.samples
        assert row["peaks_megabytes"].keys() == PHASES.keys()
        assert row["peak_megabytes"] == max(row["peaks_megabytes"].values())
        assert (row["rounds"], row["updates"]) == (3, 9)


def test_the_peak_includes_a_bank_in_memory(tmp_path: Path) -> None:
    def peak(placement: str) -> float:
        case = Case(200_000, 100, placement=placement, updates=3)  # 80 MB
        (row,) = scaling_bank.measure_bank([case], tmp_path, 1, large=False)
        return row["peaks_megabytes"]["make"]

    assert 80 <= peak("device") < 140  # once, beside about 20 MB of torch's own
    assert peak("file") < 60


def test_a_bank_that_is_too_large_is_skipped(tmp_path: Path) -> None:
    cases = [
        Case(700, 5, placement="file", large=True),
        Case(10**9, 10**4, placement="file"),
        Case(10**9, 10**4),
    ]
    rows = list(scaling_bank.measure_bank(cases, tmp_path, 1, large=False))
    assert "pass --large" in rows[0]["skipped"]
    assert all("of disk, " in row["skipped"] for row in rows[1:])
    assert not any(row["wrong"] for row in rows)
    assert scaling_bank.why_not(cases[0], str(tmp_path), large=True) is None


@pytest.fixture
def mesh():
    """Mesh of a process group of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("target", "mutant", "why"),
    [
        ("LabelBank.refined_labels", lambda bank: torch.zeros(len(bank)).long(), "refined_labels"),
        ("load", lambda *_: None, "the checkpoint has other rows"),
        ("reference.alr_loss_and_grad", lambda z, *_, **__: (z.sum(), z), "update: loss is off"),
    ],
)
def test_a_wrong_phase_is_detected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mesh, target: str, mutant, why: str
) -> None:
    monkeypatch.setattr(f"benchmarks.scaling.bank_phases.{target}", mutant)
    with MemoryWatch() as watch, pytest.raises(AssertionError, match=why):
        BankRun(TINY_CASES[0], tmp_path, mesh, watch).run()


def test_an_export_in_another_order_is_detected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mesh
) -> None:
    write = BankFileWriter.write
    monkeypatch.setattr(
        BankFileWriter,
        "write",
        lambda file, positions, rows: write(file, positions.roll(1), rows),
    )
    with MemoryWatch() as watch, pytest.raises(AssertionError, match="export"):
        BankRun(TINY_CASES[0], tmp_path, mesh, watch).run()


def test_the_error_of_a_failed_process_has_its_cause(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    child = Child(scaling_bank.bank_process, TINY_CASES[0], str(tmp_path / "file"), 1)
    with pytest.raises(RuntimeError, match=r"failed: Traceback(.|\n)*SharedError"):
        child.receive(120)
    child.stop()
    store = str(tmp_path / "store")  # waits for a second process in vain
    silent = Child(scaling_ranks.rank_process, 0, 2, 1, store, scaling_ranks.TINY)
    with pytest.raises(RuntimeError, match=r"gave no answer in 0\.01 s"):
        silent.receive(0.01)
    silent._process.kill()
    with pytest.raises(RuntimeError, match=r"died \(exit code -9\)"):
        silent.receive(60)
    silent.stop()


def test_every_point_has_a_row(rows: list[dict]) -> None:
    found = of_suite(rows, "step_cost")
    points = [(row["samples"], row["classes"], row["batch"]) for row in found]
    assert points == list(TINY_POINTS)
    for row in found:
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        per_element = row["p50_us"] * 1e3 / (row["classes"] * row["batch"])
        assert row["ns_per_element"] == pytest.approx(per_element)
        assert row["bank_bytes"] == 4 * row["samples"] * row["classes"]
        batches = row["samples"] // row["batch"]
        assert f"({batches} batches in rotation)" in row["index_pattern"]
        assert row["calls"] >= 60


def test_rows_of_one_suite_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "FOLDER", tmp_path)
    monkeypatch.setattr(step_cost, "POINTS", TINY_POINTS)
    scaling.main(["--suite", "step_cost", "--seconds", "0", "--threads", "1"])
    (path,) = tmp_path.iterdir()
    assert {row["suite"] for row in json.loads(path.read_text())} == {"step_cost"}


def test_the_report_shows_the_rows(rows: list[dict], tmp_path: Path) -> None:
    rows = [*rows, {**of_suite(rows, "bank")[0], "samples": 7, "skipped": "too large"}]
    page = write_page(tmp_path, rows)
    page = page[page.index("## Processes together") :]
    assert page.count("`python -m benchmarks.scaling`; [") == 3
    assert "| 1 x 1 | 16 | " in page and "| 4 x " in page
    assert "| 600 x 5 | float32 | device | 0.0 | " in page
    assert all(f"| {phase} | {what} |" in page for phase, what in PHASES.items())
    assert "| 7 x 5 | float32 | device | 0.0 | not measured | (too large) |" in page
    assert "| 64 | 3 | 8 | 0.0 | " in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in table if "x 5 | " in line or line.startswith("| N x K")}
    assert len(widths) == 1
