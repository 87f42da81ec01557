"""Images, texts and rows of tables on the page of `LabelIssues.report`."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alr_fast.errors import UserError
from alr_fast.labels import find_issues
from alr_fast.labels.report import content
from alr_fast.labels.report.content import make_report
from alr_fast.labels.report.thumbnails import thumbnail
from alr_fast.labels.report.views import Views

N = 6
GREY = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
RGB = np.stack([GREY, GREY.T, 255 - GREY], axis=2)


def pixels(value):
    return np.array(Image.open(io.BytesIO(thumbnail(value, 128, 80))))


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        RGB,
        RGB.transpose(2, 0, 1),
        RGB / 255,
        RGB.astype(np.int64),
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255).requires_grad_(),
        (torch.from_numpy(RGB) / 255, 3),
        {"label": 3, "image": RGB},
        Image.fromarray(RGB),
        Image.fromarray(RGB).convert("RGBA"),
        encoded(RGB),
    ],
)
def test_images_in_any_form(value):
    assert np.array_equal(pixels(value), RGB)


@pytest.mark.parametrize(
    "value",
    [GREY, GREY[None], GREY[:, :, None], GREY / 255.0, torch.from_numpy(GREY)[None] / 255, [GREY]],
)
def test_grey_images(value):
    assert np.array_equal(pixels(value), GREY)


def test_other_values_are_stretched():
    normalised = torch.from_numpy(GREY).float() / 100 - 1.5
    assert np.abs(pixels(normalised).astype(int) - np.round(GREY * (255 / 252))).max() <= 1
    assert pixels(np.array([[0, 8], [16, 4]])).tolist() == [[0, 128], [255, 64]]  # 0 to 16
    assert pixels(np.array([[10.0, 64.0]])).tolist() == [[10, 64]]  # bright enough for 0 to 255
    assert pixels(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]
    assert pixels(np.array([[True, False]])).tolist() == [[255, 0]]
    small = torch.tensor([[0, 3]], dtype=torch.uint8)  # dark, but of a type that fixes the range
    assert pixels(small).tolist() == [[0, 3]]
    assert pixels(torch.ones(2, 2, dtype=torch.bfloat16)).tolist() == [[255, 255]] * 2


def test_files_are_upright_and_small(tmp_path):
    photograph = np.zeros((400, 600, 3), np.uint8)
    photograph[:, :300] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph, "JPEG", exif=exif))
    found = Image.open(io.BytesIO(thumbnail(path, 128, 80)))
    assert (found.format, found.size) == ("WEBP", (85, 128))
    shown = np.array(found)
    assert shown[:40].mean() > 150 and shown[-40:].mean() < 50
    assert np.array_equal(np.array(Image.open(io.BytesIO(thumbnail(str(path), 128, 80)))), shown)


@pytest.fixture
def issues():
    """Three suspicious samples, 5, 0 and 3; the others are certain."""
    p = np.full((N, 3), 0.02)
    p[:, 0] = 0.96
    p[[0, 3, 5]] = [[0.1, 0.7, 0.2], [0.2, 0.6, 0.2], [0.04, 0.9, 0.06]]
    ids = np.arange(N) + 100
    return find_issues([0] * N, p, class_names=["x", "y", "<z>"], sample_ids=ids)


def data_of(path):
    block = re.search(r'id="report-data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(block[1])


def rows_of(issues, **sources):
    """The suspects of a report with these sources."""
    options = {"images": None, "text": None, "table": None} | sources
    return make_report(issues, Views.of(issues, **options), title="t", most=3)


class Pairs(torch.utils.data.Dataset):
    """A data set of (image, label); image k has the value k."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        return torch.full((1, 4, 4), row, dtype=torch.uint8), 0


@pytest.mark.parametrize(
    "images",
    [
        Pairs(),
        lambda id: np.full((4, 4), id - 100, np.uint8),
        [np.full((4, 4), k, np.uint8) for k in range(N)],
        np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None], (N, 4, 4)),
        torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 1, 4, 4),
    ],
)
def test_a_page_of_images(tmp_path, issues, images):
    path = tmp_path / "a.html"
    issues.report(path, images=images, title="Mine <b>", most=3)
    data = data_of(path)
    assert data["noun"] == "images"
    assert [s["id"] for s in data["suspects"]] == [105, 100, 103]
    for suspect in data["suspects"]:
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(suspect["image"].split(",")[1]))))
        assert (shown == suspect["id"] - 100).all()
        assert suspect["path"] == "" and suspect["changes"] is None
    assert data["suspects"][0]["others"] == [[1, pytest.approx(0.9)], [2, pytest.approx(0.06)]]
    text = path.read_text(encoding="utf-8")
    assert "<title>Mine &lt;b&gt;</title>" in text and "Suspicious images" in text


def test_files_and_images_that_cannot_be_read(tmp_path, issues):
    (tmp_path / "0.png").write_bytes(encoded(GREY))
    (tmp_path / "3.png").write_bytes(encoded(GREY)[:60])
    found = rows_of(issues, images=[tmp_path / f"{k}.png" for k in range(N)])
    problems = {s.id: s.image_problem for s in found.suspects}
    assert problems == {105: "no such file", 100: "", 103: "the PNG is cut off"}
    assert found.notes[0] == "2 of 3 images cannot be shown (first: no such file)."

    def broken(id):
        raise KeyError(id)

    found = rows_of(issues, images=broken)
    assert {s.address for s in found.suspects} == {""}
    assert {s.image_problem for s in found.suspects} == {
        "KeyError: 105", "KeyError: 100", "KeyError: 103",
    }  # fmt: skip
    shapes = rows_of(issues, images=np.zeros((N, 7))).suspects
    assert shapes[0].image_problem == "an array of shape (7,) is no image"
    assert "is no image" in rows_of(issues, images=[object()] * N).suspects[0].image_problem


@pytest.mark.parametrize("kind", [str, Path, lambda path: path.name])
def test_files_of_a_list_are_links(tmp_path, issues, monkeypatch, kind):
    """Whole paths, or below the current folder; where there is a file."""
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / f"{k} #ä.png" for k in range(N)]
    for k in (0, 5):
        files[k].write_bytes(encoded(GREY))
    found = rows_of(issues, images=[kind(file) for file in files])
    assert {s.id: s.address for s in found.suspects} == {
        105: files[5].as_uri(), 100: files[0].as_uri(), 103: "",
    }  # fmt: skip


def test_texts(tmp_path, issues):
    hostile = "</script><script>window.pwned=1</script>"
    texts = [hostile if k == 5 else f"text {k} " * 3000 for k in range(N)]
    path = tmp_path / "a.html"
    issues.report(path, text=texts, most=3)
    data = data_of(path)
    assert data["noun"] == "texts" and hostile not in path.read_text()
    assert data["suspects"][0]["text"] == hostile
    long = data["suspects"][1]["text"]
    assert long.startswith(texts[0][:10_000]) and long.endswith("… (10,000 of 21,000 characters)")
    assert data["suspects"][0]["image"] is None and data["suspects"][0]["problem"] == ""
    by_id = rows_of(issues, text=lambda id: f"<{id}>")
    assert [s.text for s in by_id.suspects] == ["<105>", "<100>", "<103>"]


def test_many_long_texts_fit_into_the_page(tmp_path, issues, monkeypatch):
    monkeypatch.setattr(content, "_PAGE_BYTES", content._OTHER_BYTES + 40_000)
    found = rows_of(issues, text=["é" * 9000] * N, images=np.zeros((N, 4, 4), np.uint8))
    assert all(s.image for s in found.suspects)
    room = 40_000 - 3 * content._SUSPECT_BYTES
    longest = room // 2 // 6 // 3
    assert [s.text for s in found.suspects] == [
        "é" * longest + f"… ({longest:,} of 9,000 characters)"
    ] * 3


def test_tables(issues):
    pandas = pytest.importorskip("pandas")
    columns = {
        "age": np.arange(N),
        "score <b>": np.linspace(0, 1 / 3, N),
        "name": [f"n{k}" * 400 for k in range(N)],
        "when": pandas.date_range("2024-01-01", periods=N),
    }
    frame = pandas.DataFrame(columns, index=range(N)[::-1])
    for table in (columns, frame, dict(frame)):
        cells = dict(rows_of(issues, table=table).suspects[0].cells)
        assert list(cells) == list(columns)
        assert cells["age"] == "5" and cells["score <b>"] == "0.333333"
        assert len(cells["name"]) == 300 and cells["name"].endswith("…")
        assert cells["when"].startswith("2024-01-06")
    doubled = pandas.DataFrame(np.arange(2 * N).reshape(N, 2), columns=["a", "a"])
    assert rows_of(issues, table=doubled).suspects[0].cells == (("a", "10"), ("a", "11"))
    array = torch.arange(N * 120).reshape(N, 120)
    cells = rows_of(issues, table=array).suspects[0].cells
    assert cells[:2] == (("0", "600"), ("1", "601"))
    assert len(cells) == 101 and cells[-1] == ("…", "20 more columns")
    assert rows_of(issues, table=columns).noun == "samples"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"images": [1, 2]},
            "images: has 2 entries for 6 samples; pass one for each sample in the",
        ),
        ({"images": 3}, "images: is a int; pass a list, an array or a data set"),
        ({"text": "abcdef"}, "text: is a str; pass a list"),
        ({"table": {"a": [1, 2]}}, "table: column a has 2 entries for 6 samples"),
        ({"table": [1, 2]}, "table: is a list; pass a pandas.DataFrame"),
    ],
)
def test_wrong_sources(tmp_path, issues, source, message):
    with pytest.raises(UserError, match=re.escape(message)):
        issues.report(tmp_path / "a.html", **source)
    assert list(tmp_path.iterdir()) == []


def test_without_sources_and_with_a_limit(tmp_path, issues):
    found = make_report(issues, Views(), title="t", most=1)
    assert [s.id for s in found.suspects] == [105]
    assert found.notes == [
        "The first 1 of 3 suspicious samples are here; most= shows more, to_csv lists all.",
        "2 of 3 classes have no samples.",
    ]
    assert found.noun == "samples" and found.suspects[0].image_problem == ""


def test_marks_belong_to_samples_and_title(issues):
    keys = {make_report(issues, Views(), title=title, most=1).key for title in ("a", "b")}
    p = np.full((N, 3), 1 / 3)
    for labels, ids in (([0] * N, range(N)), ([1] * N, range(100, 100 + N))):
        other = find_issues(labels, p, sample_ids=ids)
        keys.add(make_report(other, Views(), title="a", most=1).key)
    assert len(keys) == 4
