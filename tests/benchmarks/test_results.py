"""Result files of benchmarks."""

import json
from pathlib import Path

import pytest

from benchmarks.harness.results import ResultFile, latest
from helpers.benchmark_rows import CPU


def test_a_result_file_is_never_overwritten(tmp_path: Path) -> None:
    first, second = ResultFile(tmp_path), ResultFile(tmp_path)
    first.write([{"suite": "latency", "number": 1, "environment": CPU}])
    second.write([{"suite": "latency", "number": 2, "environment": CPU}])
    assert second.path.name == first.path.name.replace(".json", "-2.json")
    first.write([{"suite": "latency", "number": 3, "environment": CPU}])  # the same run
    assert [json.loads(f.path.read_text())[0]["number"] for f in (first, second)] == [3, 2]
    ((name, rows),) = latest(tmp_path).values()
    assert (name, rows[0]["number"]) == (second.path.name, 2)


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"suite": "latency"}]')
    with pytest.raises(ValueError, match=r"broken\.json holds no rows"):
        latest(tmp_path)
