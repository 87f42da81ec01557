"""From the folder of a run to the page of its report."""

import importlib.util
import json
import re
import shutil
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from alr_fast.data.datasets import FORMS, DatasetName
from alr_fast.labels.report import content, views
from alr_fast.labels.report.thumbnails import SIZES, thumbnail
from alr_fast.labels.report.views import Views
from alr_fast.report import about_run, main
from alr_fast.train import main as train
from alr_fast.training.open_run import open_run
from alr_fast.utils.requirements import install_command
from helpers.commands import commands
from helpers.exported_runs import rewrite_bank
from helpers.image_folder import write_folder

LARGEST = 15_000_000


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folder of a finished run with checkpoints; no test writes into it."""
    runs = tmp_path_factory.mktemp("digits") / "runs"
    argv = ["--methods", "ce,alr", "--optim.epochs", "5", "--alr.warmup_epochs", "2"]
    argv += ["--alr.momentum", "0.5", "--checkpoint.steps", "60", "--log.to", "csv"]
    assert train([*argv, "--log.show", "quiet", "--runs", str(runs)]) == 0
    return (runs / "latest").resolve()


@pytest.fixture
def run(digits, tmp_path):
    """A copy of the run."""
    return shutil.copytree(digits, tmp_path / "run")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images listed in tables, one class with one sample: their folder, and that of a run."""
    base = tmp_path_factory.mktemp("photographs")
    sets = {"a": 12, "b": 12, "c": 1}
    root = base / "set"
    images = write_folder(root / "all", train=sets, test={"a": 4, "b": 4}, size=(90, 60))
    for split in ("train", "test"):
        paths = sorted(path.relative_to(root) for path in (images / split).rglob("*.png"))
        lines = [f"{path},{path.parent.name}" for path in paths]
        (root / f"{split}.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    argv = ["--data-root", str(root), "--runs", str(base / "runs"), "--optim.epochs", "2"]
    argv += ["--optim.batch_size", "8", "--data.workers", "1", "--data.image_size", "16"]
    argv += ["--alr.warmup_epochs", "0", "--alr.momentum", "0.3", "--methods", "alr"]
    assert train([*argv, "--log.to", "csv", "--log.show", "quiet"]) == 0
    return root, (base / "runs" / "latest").resolve()


@pytest.fixture
def with_doubts(photographs, tmp_path):
    """Copies of images and run; in the bank every second refined label differs."""
    root, run = photographs
    root, run = shutil.copytree(root, tmp_path / "set"), shutil.copytree(run, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(photographs[0]), str(root)))

    def doubt(bank, facts):
        given, rows = bank["given_labels"], bank["rows"]
        rows.fill_(0.05)
        rows[torch.arange(25), given] = 0.9
        rows[::2] = 0.04
        rows[torch.arange(0, 25, 2), (given[::2] + 1) % 3] = 0.92

    rewrite_bank(run, doubt)
    return root, run


def read_page(path):
    """Text, data of the scripts, facts and notes of a page."""
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text)[1]
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    notes = re.search(r'<ul class="notes".*?</ul>', text, re.DOTALL)
    notes = re.findall(r"<li>(.*?)</li>", notes[0]) if notes else []
    return text, json.loads(data), facts, notes


def page_of(run, *argv):
    assert main([str(run), *argv]) == 0
    return read_page(run / "report.html")


def content_of(run, labels, most):
    shown = Views(labels.images)
    return content.make_report(labels, shown, **about_run(run, labels), most=most)


def percent(share):
    return f"{100 * share:.1f}%"


def test_the_report_of_a_run(run, capsys):
    text, data, facts, notes = page_of(run)
    assert len(text.encode()) < LARGEST
    with open_run(run) as labels:
        rows = labels.most_suspicious(500, above=0.5)
        wanted = labels.samples(rows)
        suspicious, rate = labels.suspicious, labels.noise_rate
        given, refined, true = labels.labels, labels.refined, labels.clean_labels
    assert [s["id"] for s in data["suspects"]] == [s["id"] for s in wanted] != []
    found = [s["score"] for s in data["suspects"]]
    assert found == sorted(found, reverse=True) and min(found) > 0.5
    for suspect, sample in zip(data["suspects"], wanted, strict=True):
        assert (suspect["path"], suspect["problem"]) == (sample["path"], "")
        assert (suspect["given"], suspect["refined"]) == (
            sample["given_label"],
            sample["refined_label"],
        )
        assert suspect["givenProbability"] == pytest.approx(sample["given_probability"])
        assert suspect["refinedProbability"] == pytest.approx(sample["refined_probability"])
        assert suspect["score"] == pytest.approx(sample["score"])
        assert suspect["changes"] == sample["changes"]
        assert suspect["image"].startswith("data:image/png;base64,")
    assert max(s["changes"] for s in data["suspects"]) > 0

    summary = json.loads((run / "summary.json").read_text())
    assert facts["run"] == "run" and facts["method"] == "alr"
    assert '<p class="size">1,437 samples in 10 classes</p>' in text
    for method in ("ce", "alr"):
        accuracy = summary["methods"][method]["test_accuracy_last"]
        assert facts[f"test accuracy, {method}"] == percent(accuracy)
    alr = summary["methods"]["alr"]
    assert facts["labels refined to another class"] == percent(alr["labels_changed"])
    assert facts["estimated wrong labels"] == percent(rate)
    assert rate == pytest.approx(summary["noise"]["realised_rate"], abs=0.03)
    assert facts["suspicious samples"] == f"{suspicious:,}"
    assert facts["wrong labels"] == percent(summary["noise"]["realised_rate"])
    assert facts["label accuracy, given and refined"] == (
        f"{percent(alr['label_accuracy_before'])} and {percent(alr['label_accuracy_after'])}"
    )
    assert facts["injected noise"] == "symmetric 40.0%"
    assert facts["training"].startswith("5 epochs, ")
    (note,) = notes
    assert note.startswith(f"The first 500 of {suspicious:,} suspicious samples are here; ")
    assert "<title>digits</title>" in text and "<h1>digits</h1>" in text
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "report.html")

    with open_run(run) as labels:
        report = content_of(run, labels, most=3)
    cells = {(g, r): n for g, r, n in report.confusion}
    assert sum(cells.values()) == 1437 and min(cells.values()) > 0
    for g, r in ((0, 0), (3, 5), (8, 1)):
        assert cells.get((g, r), 0) == ((given == g) & (refined == r)).sum()
    for k, noise in enumerate(report.classes):
        own = given == k
        assert (noise.name, noise.samples) == (str(k), own.sum())
        assert noise.changed == (own & (refined != k)).sum()
        assert noise.wrong == (own & (true != k)).sum()


def test_curves_are_those_of_the_metrics(run):
    with open_run(run) as labels:
        report = content_of(run, labels, most=0)
    panels = {panel.title: panel for panel in report.panels}
    assert list(panels)[:2] == ["test accuracy", "label accuracy"]
    summary = json.loads((run / "summary.json").read_text())
    for method in ("ce", "alr"):
        epochs, values = panels["test accuracy"].series[method]
        assert epochs == [1, 2, 3, 4, 5]
        last = summary["methods"][method]["test_accuracy_last"]
        assert values[-1] == pytest.approx(100 * last)
        assert panels["training loss"].unit == ""
        # Two of five epochs, and none.
        assert panels["training loss"].warmup == {"ce": 0, "alr": 2}
        assert 0 < panels["training loss"].series[method][1][-1] < 5


def test_thumbnails_are_the_images(run):
    with open_run(run) as labels:
        (png,), (problem,) = Views(labels.images).thumbnails(np.array([7]), 10**6)
        pixels = labels.images(7)[0]
    assert problem == ""
    (run / "a.png").write_bytes(png)
    assert np.array_equal(np.array(Image.open(run / "a.png")), pixels)


def test_most_limits_the_suspects_and_a_note_counts_them(run):
    everything = page_of(run)[1]["suspects"]
    _, data, facts, notes = page_of(run, "--most", "7")
    assert data["suspects"] == everything[:7]
    (note,) = notes
    assert note.startswith(f"The first 7 of {facts['suspicious samples']} suspicious samples ")
    assert commands(note) == [["export", str(run)]]
    _, data, _, notes = page_of(run, "--most", "0")
    assert data["suspects"] == [] and "The first 0 of " in notes[0]


def test_without_an_estimate_the_page_shows_the_highest_scores_and_says_why(run, capsys):
    def forget(bank, facts):
        bank["rows"] = torch.eye(10)[bank["given_labels"]]

    rewrite_bank(run, forget)
    text, data, facts, notes = page_of(run)
    with open_run(run) as labels:
        assert [s["id"] for s in data["suspects"]] == labels.most_suspicious(10).tolist()
    assert facts["suspicious samples"] == facts["estimated wrong labels"] == "cannot be estimated"
    assert facts["labels refined to another class"] == "0.0%"
    assert notes[0].startswith("How many labels are wrong cannot be estimated: the rows are the ")
    assert notes[1].startswith("None of these samples counts as suspicious")
    assert "looks suspicious" not in text
    assert "cannot be estimated: the rows are the given labels alone" in capsys.readouterr().out


def test_a_run_without_suspicious_labels_shows_the_highest_scores(run):
    def trust(bank, facts):
        given = bank["given_labels"]
        bank["rows"] = torch.full((len(given), 10), 0.01)
        bank["rows"][torch.arange(len(given)), given] = 0.91
        facts["given_share"] = "0.0"

    rewrite_bank(run, trust)
    text, data, facts, notes = page_of(run)
    assert len(data["suspects"]) == 10 and max(s["score"] for s in data["suspects"]) <= 0.5
    assert facts["suspicious samples"] == "0" and facts["estimated wrong labels"] == "0.0%"
    assert notes == [
        "None of these samples counts as suspicious: they have the highest scores, no more."
    ]
    assert "looks suspicious" not in text


def test_samples_that_were_never_seen_are_counted(run, capsys):
    def forget(bank, facts):
        bank["rows"][:4] = torch.eye(10)[bank["given_labels"][:4]]
        bank["given_loss"][:3] = torch.nan

    rewrite_bank(run, forget)
    said = "3 of 1,437 samples were never trained on: nothing is known about their labels."
    assert said in page_of(run)[3] and said in capsys.readouterr().out


def test_a_run_without_curves(run):
    (run / "metrics.csv").unlink()
    text, data, facts, notes = page_of(run)
    assert notes[1:] == ["No curves: the run has no metrics.csv (--log.to csv)."]
    assert data["figures"] == [] and facts["test accuracy, ce"]
    assert len(text) < len(page_of_size_with_curves(run))


def page_of_size_with_curves(run):
    (run / "metrics.csv").write_text("method,epoch,test_accuracy\nce,1,0.5\nce,2,\nce,3,0.75\n")
    return page_of(run)[0]


def test_a_run_that_was_not_finished(run, capsys):
    whole = page_of(run)[1]["suspects"]
    for name in ("summary.json", "alr_bank.safetensors"):
        (run / name).unlink()
    text, data, facts, notes = page_of(run)
    assert notes[0] == "The run was not finished: the labels are those of its last checkpoint."
    assert [s["id"] for s in data["suspects"]] == [s["id"] for s in whole]
    assert "<title>run</title>" in text
    assert "training" not in facts and facts["wrong labels"]
    assert "in a run that was not finished" in capsys.readouterr().out


DAMAGED = {
    "a list": ("summary.json", "[1, 2]"),
    "no JSON": ("summary.json", "{"),
    "nested": ("summary.json", "[" * 99_999),
    "bytes": ("summary.json", b"\xff"),
    "data": ("summary.json", '{"data": 3, "epochs": 1, "seconds": 1}'),
    "no data": ("summary.json", '{"data": null, "epochs": 1, "seconds": 1}'),
    "methods": ("summary.json", '{"methods": ["alr"], "epochs": 1, "seconds": 1}'),
    "accuracy": ("summary.json", '{"methods": {"alr": 3}, "epochs": 1, "seconds": 1}'),
    "text": (
        "summary.json",
        '{"methods": {"alr": {"test_accuracy_last": "high"}}, "epochs": 1, "seconds": 1}',
    ),
    "no epochs": ("summary.json", '{"seconds": 1}'),
    "seconds": ("summary.json", '{"epochs": 1, "seconds": "long"}'),
    "noise": ("summary.json", '{"noise": "none", "epochs": 1, "seconds": 1}'),
    "no rate": ("summary.json", '{"noise": {"kind": "pair"}, "epochs": 1, "seconds": 1}'),
    "number": ("metrics.csv", "method,epoch,test_accuracy\nce,1,high\n"),
    "epoch": ("metrics.csv", "method,epoch,test_accuracy\nce,first,0.5\n"),
    "no epoch": ("metrics.csv", "method,test_accuracy\nce,0.5\n"),
    "no method": ("metrics.csv", "epoch,test_accuracy\n1,0.5\n"),
    "no text": ("metrics.csv", b"method,epoch,test_accuracy\n\xff,1,0.5\n"),
    "long": ("metrics.csv", "method,epoch,test_accuracy\n" + "x" * 200_000 + ",1,0.5\n"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_of_a_run_is_named(run, capsys, case):
    name, content = DAMAGED[case]
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run / name}: is damaged (") and error.count("\n") == 1
    assert "move it away to make the report without it" in error
    assert not (run / "report.html").exists()
    (run / name).unlink()
    assert main([str(run)]) == 0


def test_accuracies_that_were_not_measured_are_left_out(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["methods"]["alr"]["test_accuracy_last"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "metrics.csv").write_text("method,epoch,test_accuracy\nalr,1,nan\nalr,2,0.5\nce,1,\n")
    _, data, facts, _ = page_of(run)
    assert facts["test accuracy, alr"] == "not measured"
    assert "NaN" not in json.dumps(data["figures"])


def test_every_suspect_has_another_class_as_its_proposal(run):
    """Also where the refined label is the given one."""
    with open_run(run) as labels:
        rows = np.flatnonzero(labels.refined == labels.labels)[:9]
        suspects = content._suspects(labels, Views(), rows)
        for row, suspect in zip(rows.tolist(), suspects, strict=True):
            p = labels.read(slice(row, row + 1))[0]
            p[suspect.given] = -1
            assert suspect.refined == suspect.given != suspect.proposal == p.argmax()
    for suspect in page_of(run)[1]["suspects"]:
        assert suspect["proposal"] not in (None, suspect["given"])
        if suspect["refined"] != suspect["given"]:
            assert suspect["proposal"] == suspect["refined"]


def test_changes_are_counted_in_the_epochs_of_the_run(run):
    assert page_of(run)[1]["changeEpochs"] == 5
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"epochs": 60}))
    assert page_of(run)[1]["changeEpochs"] == 10
    (run / "summary.json").unlink()
    assert page_of(run)[1]["changeEpochs"] == 10


def test_the_paths_of_images_are_links(with_doubts):
    root, run = with_doubts
    text, data, _, _ = page_of(run)
    assert f"<title>{root.name}</title>" in text  # not the form that the data have
    for suspect in data["suspects"]:
        assert suspect["address"] == (root / suspect["path"]).as_uri()
    assert "img-src data: file:; " in text.replace("&#39;", "'")
    moved = root.rename(root.with_name("mo ved"))
    _, data, _, _ = page_of(run, "--data-root", str(moved))
    assert all(s["address"] == (moved / s["path"]).as_uri() for s in data["suspects"])


def test_images_without_files_have_no_links(run):
    assert {suspect["address"] for suspect in page_of(run)[1]["suspects"]} == {""}


def test_every_form_of_data_is_known():
    published = {"digits", "cifar10", "cifar100", "animal10n", "clothing1m", "food101n"}
    published |= {"webvision", "webvision-mini"}
    assert {*get_args(DatasetName)} == {"auto", *published, *FORMS}


def test_unreadable_images_are_reported(with_doubts, capsys):
    root, run = with_doubts
    shown = page_of(run)[1]["suspects"]
    assert len(shown) == 13 and all(s["image"] for s in shown)
    gone, broken = shown[2], shown[5]
    (root / gone["path"]).unlink()
    (root / broken["path"]).write_bytes((root / broken["path"]).read_bytes()[:100])
    _, data, _, notes = page_of(run)
    for before, now in zip(shown, data["suspects"], strict=True):
        if before["id"] not in (gone["id"], broken["id"]):
            assert now == before
    assert data["suspects"][2] == gone | {
        "image": None,
        "problem": "no such file",
        "address": "",
    }
    assert data["suspects"][5] == broken | {"image": None, "problem": "the PNG is cut off"}
    assert notes == [
        "2 of 13 images cannot be shown (first: no such file). If the data was moved, pass "
        "--data-root DIR."
    ]


def test_photographs_are_shrunk_to_webp(with_doubts, tmp_path):
    _, run = with_doubts
    with open_run(run) as labels:
        (large,), _ = Views(labels.images).thumbnails(np.array([3]), 10**6)
        small = thumbnail(labels.images(3), 48, 50)
    for name, data, size in (("large", large, (90, 60)), ("small", small, (48, 32))):
        path = tmp_path / name
        path.write_bytes(data)
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("WEBP", size, "RGB")


def test_thumbnails_fit_into_the_page(with_doubts, monkeypatch):
    """Thumbnails shrink until they fit; if the smallest do not, there are fewer of them."""
    _, run = with_doubts
    with open_run(run) as labels:
        rows = labels.most_suspicious(99, above=0.5)
        shown = Views.of(labels, images=None, text=None, table=None)
        sizes = [[len(thumbnail(labels.images(row), *size)) for row in rows] for size in SIZES]
        totals = [sum(of_size) for of_size in sizes]
        assert totals == sorted(totals, reverse=True)
        # Paths and addresses need room, too; base64 adds a third.
        names = [labels.paths[row] + shown.address(row) for row in rows.tolist()]
        texts = sum(content._SUSPECT_BYTES + 6 * len(name) for name in names)

        def make_room(image_bytes):
            page = content._OTHER_BYTES + texts + -(-image_bytes * 4 // 3)
            monkeypatch.setattr(content, "_PAGE_BYTES", page)
            suspects = content._suspects(labels, shown, rows)
            return [s.image for s in suspects], [s.image_problem for s in suspects]

        for limit, of_size in zip(totals, sizes, strict=True):
            images, problems = make_room(limit)
            assert [len(image) for image in images] == of_size
            assert problems == [""] * 13
        images, problems = make_room(sum(sizes[-1][:4]))
    assert [image is not None for image in images] == [True] * 5 + [False] * 8
    assert problems == [""] * 5 + ["left out, the page would be too large"] * 8
    _, data, _, notes = page_of(run)
    assert [s["image"] is None for s in data["suspects"]] == [False] * 5 + [True] * 8
    assert "8 images have no room on the page" in notes[0]


def test_a_full_page_stays_small(with_doubts, monkeypatch):
    """Random bytes, which cannot be compressed, with the real limits."""
    _, run = with_doubts
    image = np.random.default_rng(0).bytes(700_000)
    webp = b"RIFF\0\0\0\0WEBP" + image
    monkeypatch.setattr(views, "thumbnail", lambda image, side, quality: webp)
    text, data, _, _ = page_of(run)
    shown = sum(s["image"] is not None for s in data["suspects"])
    assert shown < 13
    # The last thumbnail exceeds the limit; a real one has a few kilobytes.
    assert len(text) - len(image) * 4 / 3 < content._PAGE_BYTES < LARGEST
    assert len(text) > 0.8 * content._PAGE_BYTES


def test_a_class_without_samples(with_doubts):
    _, run = with_doubts

    def rename(bank, facts):
        bank["given_labels"][bank["given_labels"] == 2] = 0

    rewrite_bank(run, rename)
    with open_run(run) as labels:
        report = content_of(run, labels, most=9)
    (noise,) = [noise for noise in report.classes if noise.name == "c"]
    assert (noise.samples, noise.changed, noise.wrong) == (0, 0, None)
    assert "1 of 3 classes have no samples." in report.notes
    text, data, facts, _ = page_of(run)
    assert "no samples" in text and data["suspects"]
    assert "wrong labels" not in facts and "injected noise" not in facts


def test_other_places_of_the_page_and_the_data(with_doubts, tmp_path, capsys):
    root, run = with_doubts
    moved, output = root.rename(tmp_path / "moved"), tmp_path / "mine.html"
    assert main([str(run), "--output", str(output)]) == 0
    assert "\n0 of 13 images found\n" in capsys.readouterr().out
    _, data, _, notes = read_page(output)
    assert not any(s["image"] for s in data["suspects"])
    assert notes == [
        f"13 of 13 images cannot be shown (first: {root}: no such file or folder). If the "
        "data was moved, pass --data-root DIR."
    ]
    assert main([str(run), "--output", str(output), "--data-root", str(moved)]) == 0
    assert "\n13 of 13 images found\n" in capsys.readouterr().out
    assert all(s["image"] for s in read_page(output)[1]["suspects"])
    assert not (run / "report.html").exists()


def test_marks_of_runs_and_methods_are_separate(run, tmp_path):
    key = page_of(run)[1]["key"]
    other = shutil.copytree(run, tmp_path / "other")
    shutil.copy(other / "alr_bank.safetensors", other / "elr_bank.safetensors")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("- alr\n", "- alr\n- elr\n"))
    assert (page_of(other)[2])["method"] == "elr"
    keys = {key, page_of(other)[1]["key"], page_of(other, "--method", "alr")[1]["key"]}
    assert page_of(other, "--method", "alr")[2]["method"] == "alr"
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--most", "-1"], "--most -1: must lie between 0 and 20000"),
        (["--most", "20001"], "--most 20001: must lie between 0 and 20000"),
        (["--most", "few"], "--most few: must be an integer; --help lists every option"),
        (["--method", "elr"], "--method elr: not trained by"),
        (["--method", "ce"], "method ce has no label bank; the methods that keep one are alr"),
        (["--output", "none/a.html"], "--output none/a.html: no folder none; make it first"),
    ],
)
def test_wrong_options(run, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(run.iterdir())
    assert main([str(run), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(run.iterdir()) == before


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'}: no such folder; pass the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "extra", "package"),
    [
        ("plotly", "report", "plotly"),
        ("itables", "report", "itables"),
        ("yaml", "train", "pyyaml"),
    ],
)
def test_missing_packages_are_named(run, monkeypatch, capsys, name, extra, package):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == name else find(n))
    assert main([str(run)]) == 2
    command = install_command([name], extra)
    error = f"error: the report needs {name}, not installed: {command}\n"
    assert capsys.readouterr().err == error and f"'{package}>=" in command
    assert not (run / "report.html").exists()


def test_the_page_opens_without_an_error(run, driver):
    from selenium.webdriver.support.wait import WebDriverWait

    page_of(run)
    driver.get_log("browser")
    driver.get((run / "report.html").as_uri())
    ids = driver.execute_script(
        "return [...document.querySelectorAll('.card')].map((c) => Number(c.dataset.id))"
    )
    with open_run(run) as labels:
        assert ids == labels.most_suspicious(len(ids), above=0.5).tolist() != []
    # The image is loaded when it comes into view.
    driver.execute_script("document.querySelector('.card img').scrollIntoView()")
    width = "return document.querySelector('.card img').naturalWidth"
    WebDriverWait(driver, 10).until(lambda driver: driver.execute_script(width) == 8)
    assert [entry["message"] for entry in driver.get_log("browser")] == []
