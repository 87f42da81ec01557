"""Tests of `benchmarks.fused_vs_reference`."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import fused_vs_reference
from benchmarks.kernels.problem import TINY_CASES
from helpers.benchmark_rows import CPU_ROW

pytest.importorskip("rich", reason="benchmarks need the extra bench")


def test_rows_of_every_case(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
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


def test_rows_are_written_to_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_vs_reference, "FOLDER", tmp_path)
    monkeypatch.setattr(fused_vs_reference, "CASES", TINY_CASES[:1])
    monkeypatch.setattr(fused_vs_reference, "measure", lambda *_: copy.deepcopy(CPU_ROW))
    fused_vs_reference.main([])
    (path,) = tmp_path.iterdir()
    assert path.name == "amd-epyc-2026-01-02-abc1234.json"
    (row,) = json.loads(path.read_text())
    assert row == CPU_ROW
    fused_vs_reference.main(["--tiny"])
    assert list(tmp_path.iterdir()) == [path]
