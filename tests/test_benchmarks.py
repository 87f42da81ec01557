"""Every benchmark runs, at a tiny size, and says what it promises."""

import json
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="benchmarks need the extra bench")

from benchmarks import fused_vs_reference
from benchmarks.problem import TINY_CASES, Problem


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
    assert "geometric" in capsys.readouterr().out


def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(TINY_CASES[0], bank_rows=64)
    problem.check()
    right = problem._function
    monkeypatch.setattr(
        problem, "_function", lambda name: lambda *a, **k: right(name)(*a, **k) * 1.001
    )
    with pytest.raises(AssertionError):
        problem.check()
