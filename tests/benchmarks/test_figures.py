"""Tests of `benchmarks.figures`: content of the figures, and errors of one line."""

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch import nn

from alr_fast import train
from alr_fast.errors import UserError
from alr_fast.training.models import build_model
from benchmarks.figures import __main__ as figures
from benchmarks.figures import curves, features, runs, style
from benchmarks.figures import tsne as tsne_figure
from benchmarks.figures.tsne import Embedding
from helpers.image_folder import write_folder

pytest.importorskip("timm", reason="training needs the extra train")

ROOT = Path(__file__).parents[2]
EPOCHS = 3
CPU = torch.device("cpu")


def trained(runs: Path, *options: str) -> Path:
    words = ["--methods", "ce,alr", "--log.show", "quiet", "--runs", str(runs), *options]
    assert train.main(words) == 0
    return (runs / "latest").resolve()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with digits."""
    runs = tmp_path_factory.mktemp("runs")
    return trained(runs, "--recipe", "digits", "--optim.epochs", str(EPOCHS))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with image files, and the folder to which these were moved afterwards."""
    folder = tmp_path_factory.mktemp("photographs")
    counts = {"cat": 12, "dog": 12, "owl": 12}
    write_folder(folder / "old", train=counts, test=counts, size=(12, 8))
    done = trained(
        folder / "runs",
        *("--data-root", str(folder / "old"), "--recipe", "folder"),
        *("--model.name", "conv-mini", "--optim.epochs", "2", "--alr.warmup_epochs", "1"),
    )
    shutil.move(folder / "old", folder / "new")
    # One of the test images is damaged afterwards.
    (folder / "new" / "test" / "dog" / "003.png").write_bytes(b"no image")
    return done, folder / "new"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with nothing in it."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def broken_run(run: Path, tmp_path: Path) -> Callable[[Callable[[Path], object]], Path]:
    """Copies the run and damages the copy."""

    def make(damage: Callable[[Path], object]) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        damage(copy)
        return copy

    return make


def metrics(run: Path, method: str) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["method"] == method]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def column(run: Path, method: str, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in metrics(run, method)])


def change_metrics(**values: str | None) -> Callable[[Path], None]:
    """Sets columns of ``metrics.csv`` to a text, or removes them."""

    def damage(run: Path) -> None:
        with (run / "metrics.csv").open(newline="") as file:
            rows = [{**row, **values} for row in csv.DictReader(file)]
        names = [name for name in rows[0] if rows[0][name] is not None]
        with (run / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    return damage


def change_summary(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = summary(run)
        change(content)
        (run / "summary.json").write_text(json.dumps(content))

    return damage


def assert_png(path: Path) -> None:
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1000
        assert 400 <= picture.height <= 1500
        # The figure is not empty: it has more colours than text.
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def test_memorisation_draws_the_accuracies_of_the_metrics(
    run: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    path = out / "figure.png"
    assert figures.main(["memorisation", str(run), "--output", str(path)]) == 0
    assert_png(path)
    (line,) = capsys.readouterr().out.splitlines()
    last = metrics(run, "ce")[-1]
    before = summary(run)["methods"]["ce"]["label_accuracy_before"]
    for shown in (float(last["train_accuracy"]), float(last["test_accuracy"]), before):
        assert percent(shown) in line
    assert line.startswith(f"ce, symmetric 40 %: after epoch {EPOCHS} ")


@pytest.mark.parametrize("method", ["ce", "alr"])
def test_memorisation_lines_are_in_percent(run: Path, method: str) -> None:
    series = curves.memorisation_series(runs.open_run(run), method)
    assert list(series["epoch"]) == list(range(1, EPOCHS + 1))
    for name in ("train_accuracy", "test_accuracy"):
        assert (series[name] == column(run, method, name)).all()
    figure = curves.draw_memorisation(series, 0.64, title="title")
    (axes,) = figure.axes
    training, test, right = axes.lines
    assert list(training.get_xdata()) == list(range(1, EPOCHS + 1))
    np.testing.assert_allclose(training.get_ydata(), 100 * series["train_accuracy"])
    np.testing.assert_allclose(test.get_ydata(), 100 * series["test_accuracy"])
    np.testing.assert_allclose(right.get_ydata(), 64)
    assert axes.get_ylabel() == "accuracy (%)"
    assert "while training" in axes.get_title()
    # Without true labels this line is missing.
    assert len(curves.draw_memorisation(series, None, title="").axes[0].lines) == 2


def test_memorisation_names_the_best_epoch(
    broken_run: Callable, out: Path, capsys: pytest.CaptureFixture
) -> None:
    def fall(copy: Path) -> None:
        rows = metrics(copy, "ce")
        with (copy / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row, accuracy in zip(rows, (0.5, 0.75, 0.25), strict=True):
                writer.writerow({**row, "test_accuracy": accuracy})

    copy = broken_run(fall)
    assert figures.main(["memorisation", str(copy), "--output", str(out / "f.png")]) == 0
    assert "test accuracy 25.0 %; best 75.0 % in epoch 2" in capsys.readouterr().out


def test_shares_are_those_of_the_metrics(
    run: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    path = out / "figure.png"
    assert figures.main(["shares", str(run), "--output", str(path)]) == 0
    assert_png(path)
    (line,) = capsys.readouterr().out.splitlines()
    for method in ("ce", "alr"):
        epochs, groups = curves.share_series(runs.open_run(run), method)
        assert list(epochs) == list(range(1, EPOCHS + 1))
        right, wrong = groups.values()
        assert (right["correct"] == column(run, method, "clean_correct")).all()
        assert (wrong["correct"] == column(run, method, "mislabelled_correct")).all()
        assert (wrong["memorised"] == column(run, method, "mislabelled_memorised")).all()
        assert list(right) == ["correct", "incorrect"]
        assert list(wrong) == ["correct", "memorised", "incorrect"]
        for shares in (right, wrong):
            np.testing.assert_allclose(sum(shares.values()), 1)
            assert all((values >= 0).all() for values in shares.values())
            for name, values in shares.items():
                assert f"{percent(values[-1])} {name}" in line.split(f"{method}: ")[1]


def test_shares_of_known_predictions(
    broken_run: Callable, out: Path, capsys: pytest.CaptureFixture
) -> None:
    known = {"clean_correct": "0.9", "mislabelled_correct": "0.1", "mislabelled_memorised": "0.65"}
    copy = broken_run(change_metrics(**known))
    words = ["shares", str(copy), "--methods", "alr", "--output", str(out / "f.png")]
    assert figures.main(words) == 0
    assert (
        "alr: samples with a right label 90.0 % correct, 10.0 % incorrect, mislabelled samples "
        "10.0 % correct, 65.0 % memorised, 25.0 % incorrect" in capsys.readouterr().out
    )


def test_no_share_is_below_zero(broken_run: Callable) -> None:
    copy = broken_run(change_metrics(mislabelled_correct="0.9", mislabelled_memorised="0.1"))
    assert 1 - 0.9 - 0.1 < 0  # in binary
    _, groups = curves.share_series(runs.open_run(copy), "ce")
    assert (groups["mislabelled samples"]["incorrect"] == 0).all()


@pytest.mark.parametrize("epochs", [1, 4])
def test_shares_are_stacked(epochs: int) -> None:
    x = np.linspace(0.1, 0.4, epochs)
    right = {"correct": x, "incorrect": 1 - x}
    wrong = {"correct": x, "memorised": x / 2, "incorrect": 1 - 1.5 * x}
    groups = {"samples with a right label": right, "mislabelled samples": wrong}
    numbers = np.arange(1.0, epochs + 1)
    figure = curves.draw_shares({m: (numbers, groups) for m in ("ce", "alr", "sat")}, title="t")
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["ce", "alr", "sat"]
    assert "while training" in figure.get_suptitle()
    colors = {"correct": style.BLUE, "memorised": style.ORANGE, "incorrect": style.GREY}
    for row, (group, shares) in enumerate(groups.items()):
        assert figure.axes[3 * row].get_ylabel() == f"{group} (%)"
        for axes in figure.axes[3 * row : 3 * row + 3]:
            lower = np.zeros(epochs)
            for area, (name, values) in zip(axes.collections, shares.items(), strict=True):
                assert to_hex(area.get_facecolor()[0]) == colors[name]
                (outline,) = area.get_paths()
                for epoch in range(epochs):
                    # Just inside and outside of both edges, in the middle of the epoch.
                    low, high = 100 * lower[epoch], 100 * (lower + values)[epoch]
                    heights = (low - 0.1, low + 0.1, high - 0.1, high + 0.1)
                    inside = [outline.contains_point((epoch + 1, y)) for y in heights]
                    assert inside == [False, True, True, False]
                lower = lower + values
            np.testing.assert_allclose(lower, 1)
            assert axes.get_xlim() == (0.5, epochs + 0.5)


def loader_of(run: Path, samples: int = 1000, seed: int = 0, data_root: str | None = None):
    return features.image_loader(
        runs.open_run(run), samples=samples, seed=seed, data_root=data_root, device=CPU
    )


@pytest.mark.parametrize("method", ["ce", "alr"])
def test_features_of_a_run_give_its_logits_and_its_accuracy(run: Path, method: str) -> None:
    loader = loader_of(run)
    net = features.load_for(runs.open_run(run), method, loader)
    found, logits, labels = features.penultimate(net, loader)
    assert found.shape == (360, net.head.in_features)
    torch.testing.assert_close(found @ net.head.weight.T + net.head.bias, logits)
    with torch.no_grad():
        torch.testing.assert_close(logits, torch.cat([net(b["image"]) for b in loader]))
    assert (labels.numpy() == loader.split.index.labels).all()
    # The same images and weights as in the test of the run.
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(summary(run)["methods"][method]["test_accuracy_last"])
    assert not net.head._forward_hooks


@pytest.mark.parametrize(
    "name, size, width",
    [("conv-small", 16, 256), ("resnet18-cifar", 32, 512), ("test_vit", 160, 64),
     ("test_convnext", 64, 64)],
)  # fmt: skip
def test_features_of_other_models(name: str, size: int, width: int) -> None:
    torch.manual_seed(0)
    net = build_model(name, num_classes=7, in_channels=3, image_size=size).eval()
    head = net.get_classifier() if hasattr(net, "get_classifier") else net.head
    nn.init.normal_(head.weight)  # those of timm are almost zero before training
    nn.init.normal_(head.bias)
    images = torch.randn(3, 3, size, size)
    batches = [
        {"image": images[:2], "label": torch.tensor([4, -1])},  # -1: unreadable image
        {"image": images[2:], "label": torch.tensor([6])},
    ]
    found, logits, labels = features.penultimate(net, batches)
    assert found.shape == (2, width)
    assert labels.tolist() == [4, 6]
    with torch.no_grad():
        torch.testing.assert_close(logits, net(images)[[0, 2]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found @ head.weight.T + head.bias, logits, rtol=1e-4, atol=1e-4)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.flatten(1)
        return (self.first(images) + self.second(images)) / 2


@pytest.mark.parametrize(
    "net",
    [
        TwoHeads(),
        nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Unflatten(1, (4, 1))),
    ],
    ids=["two heads", "no linear layer", "other shape"],
)
def test_models_without_one_last_linear_layer_are_rejected(net: nn.Module) -> None:
    batch = {"image": torch.randn(2, 3, 2, 2), "label": torch.tensor([0, 1])}
    with pytest.raises(UserError, match=r"does not end in one linear layer.*--model\.name"):
        features.penultimate(net, [batch])
    assert not any(module._forward_hooks for module in net.modules())


def test_samples_are_test_images_drawn_by_the_seed(run: Path) -> None:
    everything = loader_of(run).split
    assert len(everything) == 360
    drawn = [loader_of(run, samples=50, seed=seed).split for seed in (0, 0, 1)]
    ids = [split.index.sample_ids.tolist() for split in drawn]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 50
    where = {sample: row for row, sample in enumerate(everything.index.sample_ids.tolist())}
    rows = [where[sample] for sample in ids[0]]
    assert (drawn[0].images.array == everything.images.array[rows]).all()
    assert (drawn[0].index.labels == everything.index.labels[rows]).all()


def test_image_files_that_have_moved(
    photographs: tuple[Path, Path], out: Path, capsys: pytest.CaptureFixture
) -> None:
    run, root = photographs
    words = ["tsne", str(run), "--perplexity", "5", "--output", str(out / "figure.png")]
    assert figures.main(words) == 2
    assert "--data-root" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    assert figures.main([*words, "--data-root", str(root)]) == 0
    assert_png(out / "figure.png")
    assert "t-SNE of 35 test images" in capsys.readouterr().out  # one is unreadable
    loader = loader_of(run, data_root=str(root))
    _, logits, labels = features.penultimate(
        features.load_for(runs.open_run(run), "ce", loader), loader
    )
    right = int((logits.argmax(1) == labels).sum())
    assert abs(right - 36 * summary(run)["methods"]["ce"]["test_accuracy_last"]) < 1.001


def test_tsne_has_a_panel_for_each_run_and_method(
    run: Path,
    broken_run: Callable,
    out: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other_results(content: dict) -> None:
        content["noise"]["kind"] = "asymmetric"
        for accuracy, result in zip((0.125, 0.25), content["methods"].values(), strict=True):
            result["test_accuracy_last"] = accuracy

    other = broken_run(change_summary(other_results))
    drawn = []
    draw = tsne_figure.draw_tsne
    monkeypatch.setattr(
        tsne_figure, "draw_tsne", lambda *a, **o: drawn.append((a, o)) or draw(*a, **o)
    )
    path = out / "figure.png"
    words = ["--samples", "60", "--perplexity", "8", "--output", str(path)]
    assert figures.main(["tsne", str(run), str(other), *words]) == 0
    assert_png(path)
    ((embeddings, classes), options) = drawn[0]
    # A row for each method, a column for each run.
    assert options["columns"] == 2
    assert [(e.method, e.noise) for e in embeddings] == [
        ("ce", "symmetric 40 %"),
        ("ce", "asymmetric 40 %"),
        ("alr", "symmetric 40 %"),
        ("alr", "asymmetric 40 %"),
    ]
    assert classes == [str(digit) for digit in range(10)]
    results = summary(run)["methods"]
    own = [results[method]["test_accuracy_last"] for method in ("ce", "alr")]
    assert [e.test_accuracy for e in embeddings] == [own[0], 0.125, own[1], 0.25]
    line = capsys.readouterr().out
    for e in embeddings:
        assert e.points.shape == (60, 2)
        assert (e.labels == loader_of(run, samples=60).split.index.labels).all()
        # Sixty images of digits, ten classes: by chance a tenth of the points.
        assert e.agreement > 0.3
        assert f"{e.method} ({e.noise}) {percent(e.agreement)}" in line
    # The same weights and images have the same points.
    np.testing.assert_allclose(embeddings[0].points, embeddings[1].points)
    assert not np.allclose(embeddings[0].points, embeddings[2].points)


def test_tsne_of_chosen_methods(run: Path, out: Path, capsys: pytest.CaptureFixture) -> None:
    path = out / "figure.png"
    words = ["--methods", "alr", "alr", "--samples", "5", "--perplexity", "2"]
    assert figures.main(["tsne", str(run), *words, "--output", str(path)]) == 0
    assert_png(path)
    line = capsys.readouterr().out
    assert line.count("symmetric") == line.count("alr (symmetric 40 %)") == 1


def embedding(classes: int, samples: int, method: str = "ce") -> Embedding:
    rng = np.random.default_rng(samples)
    labels = rng.integers(classes, size=samples)
    return Embedding(method, "symmetric 20 %", 0.875, rng.normal(size=(samples, 2)), labels)


def test_points_have_the_colour_of_their_true_class() -> None:
    shown = [embedding(10, 200), embedding(10, 4, "alr")]
    names = [f"class {k}" for k in range(10)]
    figure = tsne_figure.draw_tsne(shown, names, columns=2, title="title")
    assert len(figure.axes) == 2
    for axes, e in zip(figure.axes, shown, strict=True):
        assert axes.get_title() == f"{e.method}, symmetric 20 %\ntest accuracy 87.5 %"
        assert len(axes.collections) == 10
        for k, points in enumerate(axes.collections):
            np.testing.assert_array_equal(points.get_offsets(), e.points[e.labels == k])
            assert to_hex(points.get_facecolor()[0]) == style.CLASS_COLORS[k]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names


def test_more_classes_than_colours_have_a_scale() -> None:
    e = embedding(100, 300)
    figure = tsne_figure.draw_tsne([e], [str(k) for k in range(100)], columns=1, title="title")
    axes, scale = figure.axes
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_array(), e.labels)
    assert points.get_clim() == (0, 99)
    assert points.colorbar.ax is scale
    figure.canvas.draw()
    assert scale.get_position().x0 > axes.get_position().x1  # beside the panel, not on it
    assert scale.get_ylabel() == "number of the true class"


def test_a_full_figure_stays_small(out: Path) -> None:
    shown = [embedding(10, 2000, "negative_smoothing") for _ in range(8)]
    names = [f"class {k}" for k in range(10)]
    path = out / "figure.png"
    style.save(tsne_figure.draw_tsne(shown, names, columns=4, title="title"), path)
    assert_png(path)


def test_agreement_counts_nearest_neighbours() -> None:
    points = np.array([[0, 0], [1, 0], [10, 0], [11, 0], [20, 0], [21, 0]], dtype=np.float64)
    e = Embedding("ce", "no noise added", 1.0, points, np.array([0, 0, 1, 2, 3, 3]))
    assert e.agreement == pytest.approx(4 / 6)


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
OF = {"any": ("memorisation", "shares", "tsne"), "metrics": ("memorisation", "shares")}


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
        ("tsne RUN --samples many", r"--samples: invalid int value.*--help"),
        ("tsne RUN --samples 30", r"--perplexity 30: .*below the number of samples, 30; lower it"),
        ("tsne RUN --perplexity 400", r"--perplexity 400: too large for the 360 test images"),
        ("tsne RUN --perplexity 0", r"--perplexity 0: must be 1 or more"),
        ("tsne RUN --perplexity nan", r"--perplexity nan: must be 1 or more"),
        ("tsne RUN --seed -1", r"--seed -1: must be 0 or more"),
        ("tsne RUN --seed 4294967296", r"--seed 4294967296: must be .* below 2\^32"),
        ("tsne RUN --device nowhere", r"--device nowhere: .*try --device cpu"),
        ("tsne RUN --data-root elsewhere", r"--data-root elsewhere: .*leave --data-root out"),
        ("tsne", r"RUN.*--help"),
        ("pie RUN", r"invalid choice: 'pie'.*--help"),
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
    assert_rejected(words, r"needs no_such_package, not installed: pip install", out, capsys)


def test_exit_status_of_the_command(out: Path) -> None:
    words = ["memorisation", str(out / "nothing"), "--output", str(out / "figure.png")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.figures", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
