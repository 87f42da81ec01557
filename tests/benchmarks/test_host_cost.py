"""Tests of `benchmarks.host_cost`."""

import json
from pathlib import Path

import pytest

from benchmarks import host_cost, report
from benchmarks.harness import results
from benchmarks.tables.host_cost import PARTS

pytest.importorskip("rich", reason="benchmarks need the extra bench")


def test_every_part_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    host_cost.main(["--device", "cpu", "--seconds", "0", "--results-dir", str(tmp_path)])
    (file,) = tmp_path.glob("*.json")
    rows = {row["variant"]: row for row in json.loads(file.read_text())}
    assert rows.keys() == PARTS.keys()
    assert all(0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] for row in rows.values())
    assert rows["native step"]["times_native"] == 1
    shown = capsys.readouterr().out
    assert all(part in shown for part in PARTS)
    page = report.report(results.latest(tmp_path))
    assert f"| {rows['step']['times_native']:.2f} |" in page
