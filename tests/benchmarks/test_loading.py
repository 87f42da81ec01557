"""Tests of `benchmarks.loading`."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.loading import __main__ as loading
from benchmarks.loading.contest import Contender
from benchmarks.loading.variants import VARIANTS, why_not
from benchmarks.loading.work import TINY, Work
from helpers.benchmark_rows import CPU, of_suite, write_page

pytest.importorskip("rich", reason="benchmarks need the extra bench")
pytest.importorskip("PIL", reason="the loaders need the extra train")
pytest.importorskip("torchvision", reason="the loaders need the extra train")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of the command."""
    out = tmp_path_factory.mktemp("loading") / "rows.json"
    loading.main(["--tiny", "--seconds", "0", "--json", str(out)])
    return json.loads(out.read_text())


def test_every_loader_has_a_row(rows: list[dict]) -> None:
    found = {row["loader"]: row for row in of_suite(rows, "loading")}
    assert list(found) == list(VARIANTS)
    for name, row in found.items():
        assert row["environment"]["cpu_isa"]
        assert row["what"] and row["source"]
        why = why_not(VARIANTS[name], "cpu")
        assert row.get("skipped") == why
        if why is None:
            low, high = row["images_per_second_p20"], row["images_per_second_p80"]
            assert 0 < low <= row["images_per_second"] <= high
            assert row["cpu_ms_per_image"] > 0
            assert row["rounds"] >= 3
            assert row["threads"] == 2
            assert row["images_per_turn"] % row["batch"] == 0
    photo = found["torch-pil"]
    assert photo["output"] == "[4, 3, 16, 16], float32, channels last"
    assert (photo["files"], photo["images_per_turn"]) == (12, 16)
    assert 600 < photo["bytes_per_file"] < 1300
    assert found["memory"]["source"] == "generated 32 x 32 JPEGs"
    dali = "skipped" not in found["dali-cpu"]
    expected = {"dali-cpu", "dali-packed", "memory"} if dali else {"torch-decode", "memory"}
    assert {name for name, row in found.items() if row["auto"]} == expected


def test_the_index_has_rows(rows: list[dict]) -> None:
    found = {row["case"]: row for row in of_suite(rows, "index")}
    assert list(found) == ["first reading", "from the cache", "worker"]
    for case in ("first reading", "from the cache"):
        row = found[case]
        assert row["samples"] == TINY.samples
        assert 0 < row["seconds_p20"] <= row["seconds"] <= row["seconds_p80"]
        assert 0 <= row["peak_megabytes"] < 100
    assert 0 < found["worker"]["private_megabytes"] < 200


def test_without_dali_its_loaders_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "nvidia.dali" else find(name)
    )
    out = tmp_path / "rows.json"
    names = ("torch-pil", "torch-decode", "dali-cpu", "decode-only")
    loading.main(["--tiny", "--seconds", "0", "--json", str(out), "--only", *names])
    rows = {row["loader"]: row for row in json.loads(out.read_text())}
    assert tuple(rows) == names
    for name in ("dali-cpu", "decode-only"):
        assert rows[name]["skipped"] == "NVIDIA DALI is not installed"
        assert not rows[name]["auto"]
    assert rows["torch-decode"]["auto"]
    page = write_page(tmp_path, list(rows.values()))
    assert "| `torch-decode` (auto) to `torch-pil` | ≥ 1.3x | " in page
    assert "- `dali-cpu` skipped: NVIDIA DALI is not installed" in page


def test_the_report_shows_the_rows(rows: list[dict], tmp_path: Path) -> None:
    page = write_page(tmp_path, rows)
    section = page[page.index("## Loading") :]
    for row in of_suite(rows, "loading"):
        name = f"`{row['loader']}`"
        assert (f"- {name} skipped: {row['skipped']}" if "skipped" in row else f"| {name}") in page
    assert "| `torch-pil` | " in section and "| 1.00x |" in section
    assert "`python -m benchmarks.loading`; [" in section
    assert "| from the cache: seconds to open | < 2 | 0.0" in section
    assert "| worker: MB of a worker's own | < 50 | " in section
    assert section.count("not measured") == 0
    # The same rows, the same files.
    if (tmp_path / "loading.png").exists():
        assert "](loading.png)" in section
        drawn = (tmp_path / "loading.png").read_bytes()
        assert write_page(tmp_path) == page
        assert (tmp_path / "loading.png").read_bytes() == drawn


def made_up_row(name: str, speed: float, **more) -> dict:
    variant = VARIANTS[name]
    return {
        "suite": "loading", "loader": name, "source": variant.source or "small",
        "what": variant.what, "auto": name in ("dali-cpu", "memory"),
        "output": "raw" if variant.raw else "small" if variant.source is None else "photos",
        "images_per_second": speed, "images_per_second_p20": speed - 1,
        "images_per_second_p80": speed + 1, "cpu_ms_per_image": 2.5, "rounds": 3,
        "images_per_turn": 1024, "batch": 64, "files": 1024, "bytes_per_file": 70_000.0,
        "threads": 2, "environment": CPU, **more,
    }  # fmt: skip


def test_the_goals_are_counted_from_the_rows(tmp_path: Path) -> None:
    rows = [
        made_up_row("torch-pil", 600),
        made_up_row("dali-cpu", 780),
        made_up_row("dali-file-reader", 840),
        made_up_row("dali-webdataset", 5000),  # another source
        made_up_row("decode-only", 9000),  # other batches
        made_up_row("memory", 50_000),
        {"suite": "index", "samples": 10, "case": "from the cache", "environment": CPU,
         "seconds": 2.0, "seconds_p20": 1.0, "seconds_p80": 3.0, "peak_megabytes": 499.0},
    ]  # fmt: skip
    page = write_page(tmp_path / "a", rows)
    assert "| `dali-cpu` (auto) | DaliLoader on the CPU | JPEG files | 780 (779-781) |" in page
    assert "| `dali-cpu` (auto) to `torch-pil` | ≥ 1.3x | 1.30x | reached |" in page
    assert "JPEG files, `dali-file-reader` | ≥ 0.95x | 0.93x | missed |" in page
    assert "| `memory`, images/s | ≥ 50,000 | 50,000 | reached |" in page
    assert "| from the cache: seconds to open | < 2 | 2.00 | missed |" in page
    assert "| from the cache: MB to open | < 500 | 499.00 | reached |" in page
    assert "| worker: MB of a worker's own | < 50 | not measured |  |" in page
    skipped = {
        key: value for key, value in made_up_row("dali-mixed", 0).items()
        if key in ("suite", "loader", "source", "what", "auto", "environment")
    }  # fmt: skip
    page = write_page(tmp_path / "b", [{**skipped, "skipped": "needs a GPU"}])
    assert "- `dali-mixed` skipped: needs a GPU" in page
    assert "| auto to `torch-pil` | ≥ 1.3x | not measured |  |" in page
    assert not (tmp_path / "b" / "loading.png").exists()
    assert "loading.png" not in page


class _Wrong:
    """A stream of batches with one fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __call__(self, work: Work, repeats: int):
        size = work.scale.size
        rng = np.random.default_rng(0)
        rows = np.arange(work.files).reshape(-1, work.scale.batch)
        if self.fault == "twice":
            rows = rows // 2
        while True:
            for ids in rows:
                images = torch.from_numpy(rng.normal(size=(len(ids), size, size, 3)))
                images = images.float().permute(0, 3, 1, 2)
                if self.fault == "nan":
                    images[0, 0, 0, 0] = torch.nan
                if self.fault == "layout":
                    images = images.contiguous()
                if self.fault == "scale":
                    images = 255 * images
                if self.fault == "shape":
                    images = images[..., 1:]
                yield ids, images


@pytest.mark.parametrize("fault", ["", "twice", "nan", "layout", "scale", "shape"])
def test_a_loader_that_is_wrong_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    work = Work(tmp_path, 12, 1, "cpu", TINY)
    wrong = dataclasses.replace(VARIANTS["torch-pil"], stream=_Wrong(fault))
    monkeypatch.setitem(VARIANTS, "torch-pil", wrong)
    if not fault:
        assert Contender("torch-pil", work).turn()[0] > 0
        return
    with pytest.raises(AssertionError, match="torch-pil"):
        Contender("torch-pil", work)


def test_small_images_come_from_cifar_if_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for split, count in (("train", 70), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / "cifar" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
                path = tmp_path / "cifar" / split / name / f"{number}.jpg"
                Image.fromarray(pixels).save(path)
    out = tmp_path / "rows.json"
    loading.main(
        ["--tiny", "--seconds", "0", "--threads", "1", "--only", "memory", "--json", str(out),
         "--cifar", str(tmp_path / "cifar")]
    )  # fmt: skip
    (row,) = json.loads(out.read_text())
    assert (row["source"], row["files"], row["threads"]) == ("CIFAR-10 (JPEG)", 140, 1)
    assert "images per second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "3"], "--images 3: a batch has 4; raise it"),
        (["--threads", "0"], "--threads 0: pass 1 or more"),
        (["--seconds", "-1"], "--seconds -1.0: pass 0 or more"),
        (["--cifar", "/nowhere"], "--cifar /nowhere: looked for train/<class>/*"),
        (["--json", "/nowhere/rows.json"], "--json /nowhere/rows.json: there is no such folder"),
        (["--only", "dali"], "--only dali: must be one of"),
    ],
)
def test_wrong_arguments_are_named(
    capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        loading.main(["--tiny", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
