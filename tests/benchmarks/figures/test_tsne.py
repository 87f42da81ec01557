"""Figures of t-SNE."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from benchmarks.figures import __main__ as figures
from benchmarks.figures import features, runs, style
from benchmarks.figures import tsne as tsne_figure
from benchmarks.figures.tsne import Embedding
from helpers.finished_runs import assert_png, change_summary, loader_of, percent, summary

pytest.importorskip("timm", reason="training needs the extra train")


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
