"""Tests of `benchmarks.fused_vs_reference`."""

import copy
import json
from pathlib import Path

import pytest

from alr_fast.functional import label_smoothing_cross_entropy
from benchmarks import fused_vs_reference
from benchmarks.kernels import cross_entropy
from benchmarks.kernels.problem import TINY_CASES
from benchmarks.tables.fused_vs_reference import terminal_cells
from helpers.benchmark_rows import CPU_ROW

pytest.importorskip("rich", reason="benchmarks need the extra bench")


def test_rows_of_every_case(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "rows.json"
    fused_vs_reference.main(["--tiny", "--seconds", "0", "--json", str(out)])
    rows = json.loads(out.read_text())
    compared = [row for row in rows if row["suite"] == "cross_entropy"]
    rows = [row for row in rows if row["suite"] == "fused_vs_reference"]
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
    assert [row["smoothing"] for row in compared] == list(cross_entropy.SMOOTHING)
    for row in compared:
        for name in ("fused", "torch"):
            low, high = row[f"{name}_p20_p80_ms"]
            assert 0 < low <= row[f"{name}_ms"] <= high
    assert "geometric" in capsys.readouterr().out


def test_the_mean_is_that_of_the_first_shapes() -> None:
    daily = CPU_ROW | {"classes": 10, "daily": True, "eager_ms": 1000 * CPU_ROW["eager_ms"]}
    alone, both = (terminal_cells(rows)[1][-1] for rows in ([CPU_ROW], [CPU_ROW, daily]))
    assert alone == both
    assert "first 1" in alone[0]


def test_a_wrong_cross_entropy_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(logits, labels, smoothing):
        return 1.001 * label_smoothing_cross_entropy(logits, labels, smoothing=smoothing)

    monkeypatch.setattr(cross_entropy, "label_smoothing_cross_entropy", wrong)
    with pytest.raises(AssertionError, match="fused: loss is off"):
        cross_entropy.measure(8, 3, 0.0, "cpu", 0)


def test_rows_are_written_to_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_vs_reference, "FOLDER", tmp_path)
    monkeypatch.setattr(fused_vs_reference, "CASES", TINY_CASES[:1])
    monkeypatch.setattr(fused_vs_reference, "DAILY_CASES", ())
    monkeypatch.setattr(fused_vs_reference, "measure", lambda *_: copy.deepcopy(CPU_ROW))
    monkeypatch.setattr(cross_entropy, "SHAPES", ())
    fused_vs_reference.main([])
    (path,) = tmp_path.iterdir()
    assert path.name == "amd-epyc-2026-01-02-abc1234.json"
    (row,) = json.loads(path.read_text())
    assert row == CPU_ROW
    fused_vs_reference.main(["--tiny"])
    assert list(tmp_path.iterdir()) == [path]
