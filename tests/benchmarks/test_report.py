"""The page that `benchmarks.report` writes."""

import copy
import re
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.harness.results import FOLDER, latest
from benchmarks.tables.excerpts import EXCERPTS
from helpers.benchmark_rows import CPU_ROW, gpu_row, write_page


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


def test_without_a_folder_of_rows_the_old_page_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "README.md"
    page.write_text("old")
    with pytest.raises(SystemExit):
        report.main(["--results-dir", str(tmp_path / "typo"), "--out", str(page)])
    assert "typo: name the one that has the rows" in capsys.readouterr().err
    assert page.read_text() == "old"


def test_a_page_without_rows(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    text = write_page(tmp_path)
    assert text.count("\nnot measured\n") == len(report.SECTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "results"}


def test_the_page_shows_rows_goals_and_sources(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = made_up_rows()
    write_page(tmp_path, rows)
    text = write_page(tmp_path, [CPU_ROW])
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
    assert write_page(tmp_path) == text
    assert plot.read_bytes() == drawn
    # A later run of one suite replaces that suite alone.
    later = [copy.deepcopy(row) for row in rows if row["suite"] == "latency"][:1]
    later[0]["environment"] |= {"date": "2026-02-03T00:00:00Z", "commit": "def5678"}
    later[0]["p50_us"] = 12.5
    text = write_page(tmp_path, later)
    assert "| 256 | 10 | 12.5 (29.0-31.0)" in text
    assert "30.0 (29.0-31.0)" not in text
    assert "≥ 90%: reached" in text
    for path in (tmp_path / "results").glob("nvidia*"):
        path.unlink()
    assert "roofline" not in write_page(tmp_path)
    assert not plot.exists()


ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page for page in (ROOT / "docs").glob("*.md") if "<!-- rows: " in page.read_text("utf-8")
)


def test_committed_pages_are_those_of_the_committed_rows() -> None:
    """After new rows, or a change of a table: python -m benchmarks.report."""
    found = latest(FOLDER)
    assert {page.name for page in PAGES} == {"accuracy.md", "method.md", "performance.md"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert report.with_tables(text, found) == text, page.name
        assert text.count("<!-- rows: ") == text.count("<!-- end of rows -->")
    drawn = [suite for suite, section in report.SECTIONS.items() if section.plot]
    page = FOLDER.parent / "README.md"
    text = page.read_text(encoding="utf-8")
    plotted = [suite for suite in drawn if f"]({report.SECTIONS[suite].plot.file})" in text]
    assert report.report(found, plotted) == text


def test_every_excerpt_is_on_a_page_with_command_device_date_and_commit() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = re.findall(r"<!-- rows: (\w+) -->\n\n(.*?)\n\n<!-- end of rows -->", text, re.DOTALL)
    assert sorted(name for name, _ in names) == sorted(EXCERPTS)
    source = r"\*\*(AMD EPYC|NVIDIA H200)\*\*, .*\d{4}-\d\d-\d\d, commit \w{7}; `python -m bench"
    for _, table in names:
        assert table.startswith("Not measured: `python -m bench") or (
            len(re.findall(source, table)) == len(re.findall(r"^\| -", table, re.MULTILINE))
        )


def test_pages_without_rows_are_not_measured(tmp_path: Path) -> None:
    results, docs = tmp_path / "benchmarks" / "results", tmp_path / "docs"
    results.mkdir(parents=True)
    docs.mkdir()
    marks = "<!-- rows: kernels_cpu -->\n<!-- end of rows -->\n"
    (docs / "page.md").write_text(f"before\n\n{marks}\nafter\n")
    (docs / "other.md").write_text("other")
    write_page(results.parent)
    text = (docs / "page.md").read_text()
    assert "\n\nNot measured: `python -m benchmarks.fused_vs_reference`.\n\n" in text
    assert text.startswith("before\n\n<!--") and text.endswith("-->\n\nafter\n")
    write_page(results.parent, [CPU_ROW])
    text = (docs / "page.md").read_text()
    assert "| 256 x 16 | 0.200 | 0.100 | 1.00 (5.0x) | 0.50 (2.5x) | 0.010 |" in text
    assert "Geometric means: 5.0 times faster than eager, 2.5 times faster" in text
    assert (docs / "other.md").read_text() == "other"
    (docs / "page.md").write_text(marks.replace("kernels_cpu", "typo"))
    with pytest.raises(KeyError, match="typo"):
        write_page(results.parent)
