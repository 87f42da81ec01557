"""Errors of the command: one line with the remedy, and no figure."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.figures import __main__ as figures
from benchmarks.figures import runs
from helpers.finished_runs import change_metrics, change_summary

pytest.importorskip("timm", reason="training needs the extra train")

ROOT = Path(__file__).parents[3]


def test_noise_in_words(run: Path) -> None:
    def noise(kind: str, rate: float) -> str:
        return runs.FinishedRun(
            run, {"noise": {"kind": kind, "requested_rate": rate}, "methods": {}}
        ).noise

    assert noise("symmetric", 0.2) == "symmetric 20 %"
    assert noise("instance", 0.29) == "instance 29 %"
    assert noise("none", 0.0) == "no noise added"


def assert_rejected(
    words: list[str], remedy: str, out: Path, capsys: pytest.CaptureFixture
) -> None:
    """One line on standard error with the remedy, and no file is written."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert figures.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("error: ")
    assert re.search(remedy, shown.err), shown.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(text)


BAD_RUNS = {
    "no such run": (shutil.rmtree, r"not the folder of a run.*pass one that", "any"),
    "no run": (remove("config.yaml"), r"not the folder of a run.*pass one that", "any"),
    "unfinished": (remove("summary.json"), r"has not finished.*--resume", "any"),
    "summary cut off": (write("summary.json", '{"methods"'), r"cannot be read.*train", "any"),
    "summary of something else": (write("summary.json", "[]"), r"cannot be read.*train", "any"),
    "no accuracy": (
        change_summary(lambda s: s["methods"]["alr"].pop("test_accuracy_last")),
        r"summary\.json.*test_accuracy_last.*train",
        "any",
    ),
    "no test samples": (
        change_summary(lambda s: s["methods"]["alr"].update(test_accuracy_last=None)),
        r"no test samples, which this figure needs; pass a run",
        "tested",
    ),
    "no metrics": (remove("metrics.csv"), r"No such file.*csv among --log\.to", "metrics"),
    "metrics without lines": (
        lambda run: (run / "metrics.csv").write_text(
            (run / "metrics.csv").read_text().splitlines()[0] + "\n"
        ),
        r"no line of method ce; train",
        "metrics",
    ),
    "other metrics": (write("metrics.csv", "a,b\n1,2\n"), r"no column.*train", "metrics"),
    "no numbers": (change_metrics(epoch="x"), r"not the metrics.*train", "metrics"),
    "metrics without test accuracy": (
        change_metrics(test_accuracy=None),
        r"no column 'test_accuracy'.*train",
        "memorisation",
    ),
    "metrics without shares": (
        change_metrics(clean_correct=None),
        r"no column 'clean_correct'.*train the run again",
        "shares",
    ),
    "true labels not known": (
        change_metrics(clean_correct="", mislabelled_correct="", mislabelled_memorised=""),
        r"not known.*pass a run with known true labels",
        "shares",
    ),
    "no wrong label": (
        change_metrics(mislabelled_correct="", mislabelled_memorised=""),
        r"no given label is wrong.*pass a run with noise",
        "shares",
    ),
    "no weights": (remove("ce.safetensors"), r"ce\.safetensors: the weights are missing", "tsne"),
    "damaged weights": (write("ce.safetensors", "x"), r"cannot be read.*pass the weights", "tsne"),
    "damaged options": (write("config.yaml", "nothing: 1"), r"config\.yaml.*nothing", "tsne"),
    "other classes": (
        change_summary(lambda s: s["data"].update(classes=list("abcdefghij"))),
        r"other classes.*--data-root DIR",
        "tsne",
    ),
}  # fmt: skip
OF = {
    "tested": ("memorisation", "tsne"),
    "any": ("memorisation", "shares", "tsne"),
    "metrics": ("memorisation", "shares"),
}


@pytest.mark.parametrize(
    "case, figure",
    [(name, figure) for name, (_, _, of) in BAD_RUNS.items() for figure in OF.get(of, (of,))],
)
def test_bad_runs(
    case: str,
    figure: str,
    broken_run: Callable,
    out: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    damage, remedy, _ = BAD_RUNS[case]
    (out / "figure.png").write_text("the old figure")
    copy = broken_run(damage)
    assert_rejected([figure, str(copy), "--output", str(out / "figure.png")], remedy, out, capsys)


@pytest.mark.parametrize(
    "words, remedy",
    [
        ("memorisation RUN --method sat", r"--method sat: .* did not train it; it has ce, alr"),
        ("shares RUN --methods ce sat", r"--methods sat: .* did not train it; it has ce, alr"),
        ("tsne RUN --methods ce sat", r"--methods sat: .* did not train it; it has ce, alr"),
        ("tsne RUN --samples 4", r"--samples 4: must be 5 or more"),
        ("tsne RUN --samples many", "--samples many: must be an integer.*--help"),
        ("tsne RUN --samples 30", r"--perplexity 30: .*below the number of samples, 30; lower it"),
        ("tsne RUN --perplexity 400", r"--perplexity 400: too large for the 360 test images"),
        ("tsne RUN --perplexity 0", r"--perplexity 0: must be 1 or more"),
        ("tsne RUN --perplexity nan", r"--perplexity nan: must be 1 or more"),
        ("tsne RUN --seed -1", r"--seed -1: must be 0 or more"),
        ("tsne RUN --seed 4294967296", r"--seed 4294967296: must be .* below 2\^32"),
        ("tsne RUN --device nowhere", r"--device nowhere: .*try cpu"),
        ("tsne RUN --data-root elsewhere", r"--data-root elsewhere: .*leave --data-root out"),
        ("tsne", r"RUN.*--help"),
        ("pie RUN", r"FIGURE pie: must be one of memorisation, shares, tsne"),
        ("", r"FIGURE.*--help"),
    ],
)  # fmt: skip
def test_bad_options(
    words: str, remedy: str, run: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [str(run) if word == "RUN" else word for word in words.split()]
    assert_rejected(
        [*given, *(["--output", str(out / "figure.png")] if given else [])], remedy, out, capsys
    )


def test_runs_with_other_classes(
    run: Path, photographs: tuple[Path, Path], out: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["tsne", str(run), str(photographs[0]), "--output", str(out / "figure.png")]
    assert_rejected(words, r"has other classes than .*; draw them into two figures", out, capsys)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_models_without_features(
    value: float, broken_run: Callable, out: Path, capsys: pytest.CaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    def damage(copy: Path) -> None:
        weights = load_file(copy / "ce.safetensors")
        save_file({k: torch.full_like(v, value) if v.is_floating_point() else v
                   for k, v in weights.items()}, copy / "ce.safetensors")  # fmt: skip

    copy = broken_run(damage)
    words = ["tsne", str(copy), "--output", str(out / "figure.png")]
    assert_rejected(words, r"not finite or all the same.*--optim\.lr", out, capsys)


@pytest.mark.parametrize("figure", ["memorisation", "shares", "tsne"])
@pytest.mark.parametrize(
    "name, remedy",
    [
        ("figure.pdf", r"pass a name that ends in \.png"),
        ("folder.png", r"is a folder; pass the name of a file"),
        ("missing/figure.png", r"there is no folder .*missing; make it first"),
    ],
)
def test_bad_outputs(
    figure: str, name: str, remedy: str, run: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    (out / "folder.png").mkdir()
    assert_rejected([figure, str(run), "--output", str(out / name)], remedy, out, capsys)


def test_output_is_required(run: Path, out: Path, capsys: pytest.CaptureFixture) -> None:
    assert_rejected(["memorisation", str(run)], r"required: --output", out, capsys)


def test_a_full_disk_leaves_the_old_figure(
    run: Path, out: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = out / "figure.png"
    path.write_text("the old figure")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = ["memorisation", str(run), "--output", str(path)]
    assert_rejected(
        words, r"figure\.png: No space left on device; free some space and try again", out, capsys
    )


def test_missing_packages_are_named(
    run: Path, out: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "TRAIN_EXTRA", ("numpy", "no_such_package"))
    words = ["memorisation", str(run), "--output", str(out / "figure.png")]
    assert_rejected(
        words,
        r"needs no_such_package, not installed: .* -m pip install no_such_package",
        out,
        capsys,
    )


def test_exit_status_of_the_command(out: Path) -> None:
    words = ["memorisation", str(out / "nothing"), "--output", str(out / "figure.png")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.figures", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
