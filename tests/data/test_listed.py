"""Lists of images as people keep them: which list, which columns, which images."""

import json

import pytest

from alr_fast.data.datasets import open_dataset
from alr_fast.data.layouts import places
from alr_fast.data.layouts.base import NoSplit
from alr_fast.data.layouts.places import names_of_images
from alr_fast.errors import UserError
from helpers.layouts import write_tree


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))


def rows(dataset, split="train"):
    """Path and class name of each sample, whose images can be read."""
    read = dataset.split(split)
    for row in range(len(read)):
        assert read.images.read(row).startswith((b"\x89PNG", b"\xff\xd8"))
    names = read.index.class_names
    return [(p, names[k]) for p, k in zip(read.index.paths, read.index.labels, strict=True)]


def lines(*texts):
    return "\n".join(texts) + "\n"


def test_kaggle_ids_without_a_suffix(tmp_path):
    write_tree(
        tmp_path,
        {
            "train.csv": lines("id,breed", "9f,boxer", "1a,pug", "77,pug"),
            "test.csv": lines("id", "00"),
            "sample_submission.csv": lines("id,breed", "00,boxer"),
            "train/9f.jpg": 0,
            "train/1a.jpg": 1,
            "train/77.jpg": 1,
            "test/00.jpg": 0,
        },
    )
    dataset = open_dataset("auto", tmp_path)
    assert dataset.layout.name == "table"
    assert "path = id, label = breed" in dataset.found.what and "/train/*.jpg" in dataset.found.what
    expected = [("train/9f.jpg", "boxer"), ("train/1a.jpg", "pug"), ("train/77.jpg", "pug")]
    assert rows(dataset) == expected
    assert dataset.split("train").remarks == (
        "not used: test.csv, without labels or without names of images",
        f"not used: 1 .jpg in {tmp_path}, listed in no row",
    )
    with pytest.raises(NoSplit):
        dataset.split("test")
    assert rows(open_dataset("auto", tmp_path / "train.csv")) == expected


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("image_id,label", {}),
        ("filename,class", {}),
        ("File Name,Category", {}),
        ("what,where", {}),
        ("where,what,why", {"columns": "path=where,label=what"}),
        ("where,what,why", {"columns": {"label": "what"}}),
        ("where,what,why", {"columns": "label=what", "images": "pictures/all"}),
    ],
)
@pytest.mark.parametrize("name", ["labels.csv", "annotations.tsv", "anything.csv"])
def test_columns_and_folders_are_found(tmp_path, header, options, name):
    comma = "\t" if name.endswith("tsv") else ","
    names = header.split(",")
    fields = {names[0]: ["1.png", "2.png"], names[1]: ["cat", "dog"], "why": ["x", "y"]}
    fields |= {"where": ["1.png", "2.png"]} if "where" in names else {}
    fields |= {"what": ["cat", "dog"]} if "what" in names else {}
    table = lines(*(comma.join(r) for r in [names, *zip(*(fields[n] for n in names), strict=True)]))
    write_tree(tmp_path, {name: table, "pictures/all/1.png": 0, "pictures/all/2.png": 1})
    dataset = open_dataset("auto", tmp_path, **options)
    assert rows(dataset) == [("pictures/all/1.png", "cat"), ("pictures/all/2.png", "dog")]


def test_names_in_another_unicode_form(tmp_path):
    table = lines("path,label", "e\u0301\u0301.png,a", "sub/e\u0301.png,b")
    write_tree(tmp_path, {"l.csv": table, "images/\u00e9\u0301.png": 0, "images/\u00e9.png": 1})
    assert rows(open_dataset("auto", tmp_path)) == [
        ("images/\u00e9\u0301.png", "a"),
        ("images/\u00e9.png", "b"),
    ]


def test_images_in_several_folders_are_found_by_name(tmp_path):
    table = lines("lesion,image_id,dx", "a,i1,nv", "b,i2,mel", "c,i3,nv", "d,i4,nv")
    content = {f"part_{k % 2}/i{k}.jpg": k for k in range(1, 5)}
    write_tree(tmp_path, {"metadata.csv": table, "notes.csv": "a,b\n1,2\n", **content})
    dataset = open_dataset("auto", tmp_path, columns="label=dx")
    assert dataset.layout.name == "table"
    assert "found by name" in dataset.found.what
    assert rows(dataset) == [
        *(("part_1/i1.jpg", "nv"), ("part_0/i2.jpg", "mel")),
        *(("part_1/i3.jpg", "nv"), ("part_0/i4.jpg", "nv")),
    ]


def test_folders_beside_a_list_of_their_images_are_no_classes(tmp_path):
    table = lines("image_id,label", "i1,nv", "i2,mel")
    content = {"metadata.csv": table, "part_1/i1.jpg": 0, "part_2/i2.jpg": 1}
    assert rows(open_dataset("auto", write_tree(tmp_path, content))) == [
        ("part_1/i1.jpg", "nv"),
        ("part_2/i2.jpg", "mel"),
    ]
    (tmp_path / "metadata.csv").unlink()
    assert open_dataset("auto", tmp_path).layout.name == "folder"


def test_hugging_face_metadata_in_the_folders_of_the_splits(tmp_path):
    first = lines(*(json.dumps({"file_name": f"{k}.png", "label": k}) for k in (0, 1)))
    write_tree(
        tmp_path,
        {
            "train/metadata.jsonl": first,
            "train/0.png": 0,
            "train/1.png": 1,
            "test/metadata.csv": lines("file_name,label", "x/7.png,1"),
            "test/x/7.png": 1,
        },
    )
    dataset = open_dataset("auto", tmp_path)
    assert rows(dataset) == [("train/0.png", "0"), ("train/1.png", "1")]
    assert rows(dataset, "test") == [("test/x/7.png", "1")]


def test_hugging_face_metadata_at_the_root(tmp_path):
    content = {"train/0.png": 0, "train/1.png": 1, "validation/2.png": 1}
    table = lines("file_name,text,label", *(f"{p},hello,{'ab'[k]}" for p, k in content.items()))
    dataset = open_dataset("auto", write_tree(tmp_path, {"metadata.csv": table, **content}))
    assert rows(dataset) == [("train/0.png", "a"), ("train/1.png", "b")]
    assert rows(dataset, "test") == [("validation/2.png", "b")]


def imagenette(tmp_path):
    header = "path,noisy_labels_0,noisy_labels_1,noisy_labels_25,is_valid"
    table = lines(
        header,
        "train/n01/a.JPEG,n01,n01,n02,False",
        "train/n02/b.JPEG,n02,n02,n02,False",
        "val/n02/c.JPEG,n02,n02,n02,True",
    )
    return write_tree(
        tmp_path,
        {
            "noisy_imagenette.csv": table,
            "train/n01/a.JPEG": 0,
            "train/n02/b.JPEG": 1,
            "val/n02/c.JPEG": 1,
        },
    )


def test_noisy_imagenette(tmp_path):
    root = imagenette(tmp_path)
    folder = open_dataset("auto", root)
    assert folder.layout.name == "folder"
    assert any("the layout table reads it" in remark for remark in folder.split("train").remarks)
    dataset = open_dataset("auto", root / "noisy_imagenette.csv")
    assert rows(dataset) == [("train/n01/a.JPEG", "n01"), ("train/n02/b.JPEG", "n02")]
    assert rows(dataset, "test") == [("val/n02/c.JPEG", "n02")]
    train = dataset.split("train")
    assert train.index.clean_labels is None
    assert train.remarks == (
        "noisy_imagenette.csv: labels are those of noisy_labels_0; others: noisy_labels_1, "
        "noisy_labels_25",
    )
    noisy = open_dataset("auto", root, columns="label=noisy_labels_25")
    assert noisy.layout.name == "table"
    assert rows(noisy) == [("train/n01/a.JPEG", "n02"), ("train/n02/b.JPEG", "n02")]
    index = noisy.split("train").index
    assert [index.class_names[k] for k in index.clean_labels] == ["n01", "n02"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("is_test", ("0", "0", "1")),
        ("is_valid", ("False", "false", "TRUE")),
        ("is_train", ("1", "yes", "0")),
        ("split", ("Training", "train", "Validation")),
        ("set", ("train", "TRAIN", "dev")),
    ],
)
def test_columns_of_splits(tmp_path, column, values):
    table = lines(
        f"path,label,{column}", *(f"{k}.png,{k % 2},{value}" for k, value in enumerate(values))
    )
    write_tree(tmp_path, {"list.csv": table, "0.png": 0, "1.png": 1, "2.png": 0})
    dataset = open_dataset("auto", tmp_path)
    assert rows(dataset) == [("0.png", "0"), ("1.png", "1")]
    assert rows(dataset, "test") == [("2.png", "0")]


def test_a_list_without_splits_is_for_training(tmp_path):
    table = lines("path,label", "0.png,a", "1.png,b")
    dataset = open_dataset("auto", write_tree(tmp_path, {"l.csv": table, "0.png": 0, "1.png": 1}))
    assert len(dataset.split("train")) == 2
    for name in ("test", "val"):
        with pytest.raises(NoSplit, match=f"no row has split {name}"):
            dataset.split(name)


def test_rows_of_val_beside_test_are_said(tmp_path):
    table = lines("path,label,split", *(f"{k}.png,{k % 2},{s}" for k, s in
                  enumerate(("train", "train", "val", "test"))))  # fmt: skip
    write_tree(tmp_path, {"list.csv": table, **{f"{k}.png": 0 for k in range(4)}})
    dataset = open_dataset("auto", tmp_path)
    assert rows(dataset, "test") == [("3.png", "1")]
    assert rows(dataset, "val") == [("2.png", "0")]
    assert any("1 rows of split val" in remark for remark in dataset.split("train").remarks)


def test_images_elsewhere(tmp_path):
    table = lines("image,label", "0.png,a", "1.png,b")
    root = write_tree(tmp_path / "lists", {"l.csv": table})
    images = write_tree(tmp_path / "elsewhere", {"0.png": 0, "1.png": 1})
    dataset = open_dataset("auto", root / "l.csv", images=str(images))
    assert rows(dataset) == [("0.png", "a"), ("1.png", "b")]
    assert dataset.found.root == images
    with pytest.raises(UserError, match="images nowhere: no such folder"):
        open_dataset("auto", root / "l.csv", images="nowhere")


def test_missing_images_are_said(tmp_path):
    write_tree(tmp_path, {"l.csv": lines("path,label", "0.png,a", "1.png,b")})
    train = open_dataset("auto", tmp_path / "l.csv").split("train")
    assert train.remarks == (
        "l.csv: no images are found for the names in its column path (for example 0.png); name "
        "their folder, as images",
    )
    with pytest.raises(UserError, match="none of the known layouts") as caught:
        open_dataset("auto", tmp_path)
    assert "l.csv: names images in its column path (for example 0.png); missing: these" in str(
        caught.value
    )


@pytest.mark.parametrize("place", ["", "l.csv"])
def test_a_list_whose_images_are_half_missing(tmp_path, place):
    write_tree(tmp_path, {"l.csv": lines("path,label", *(f"{k}.png,c{k % 2}" for k in range(8))),
                          **{f"images/{k}.png": k for k in range(4)}})  # fmt: skip
    train = open_dataset("auto", tmp_path / place).split("train")
    assert [str(path) for path in train.index.paths] == [f"images/{k}.png" for k in range(8)]


def test_a_list_with_few_images_is_none_beside_class_folders(tmp_path):
    write_tree(tmp_path, {"l.csv": lines("path,label", *(f"a/{k}.png,c{k % 2}" for k in range(8))),
                          **{f"{name}/{k}.png": k for k in range(4) for name in "ab"}})  # fmt: skip
    assert open_dataset("auto", tmp_path).layout.name == "folder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines("path,label", "0.png,a", "1.png"), "line 3: 1 fields, the header has 2"),
        (lines("path,label"), "l.csv: has no rows below the header"),
        (lines("image,a,b", "0.png,1,0"), "no column label; it has image, a, b; name the one of"),
        (lines("path|label", "0.png|a"), "divided by commas, semicolons"),
        (lines("path,label", "s3://x/7.png,a"), "(for example s3://x/7.png); missing: these"),
    ],
)
def test_why_a_table_is_no_list_of_the_images_beside_it(tmp_path, text, message):
    write_tree(tmp_path, {"l.csv": text, "images/0.png": 0, "images/1.png": 1})
    with pytest.raises(UserError) as caught:
        open_dataset("auto", tmp_path)
    assert message in str(caught.value)
    assert "food101n:" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 10


def test_images_that_no_row_lists_are_counted(tmp_path):
    write_tree(tmp_path, {"l.csv": lines("path,label", "images/0.png,a", "images/1.png,b"),
                          **{f"images/{k}.png": k for k in range(3)}, "images/x/3.jpg": 0,
                          "other/4.jpg": 0})  # fmt: skip
    remarks = open_dataset("table", tmp_path).split("train").remarks
    assert remarks == (f"not used: 2 .jpg, 1 .png in {tmp_path}, listed in no row",)


@pytest.mark.parametrize("column", ["label", "reason"])
def test_a_table_about_few_images_of_class_folders(tmp_path, column):
    write_tree(tmp_path, {"l.csv": lines(f"path,{column}", "a/0.png,b", "b/1.png,a"),
                          **{f"{name}/{k}.png": k for k in range(4) for name in "ab"}})  # fmt: skip
    dataset = open_dataset("auto", tmp_path)
    assert dataset.layout.name == "folder"
    said = "not read: l.csv, which lists few of these images; --labels reads labels"
    assert dataset.split("train").remarks == ((said,) if column == "label" else ())


def test_a_named_list_without_a_column_of_labels(tmp_path):
    write_tree(tmp_path, {"l.csv": lines("image,a,b", "0.png,1,0"), "0.png": 0})
    with pytest.raises(UserError, match=r"no column label; it has image, a, b; name the"):
        open_dataset("auto", tmp_path / "l.csv")


def test_several_lists_are_named(tmp_path):
    table = lines("path,label", "0.png,a", "1.png,b")
    write_tree(tmp_path, {"one.csv": table, "two.csv": table, "0.png": 0, "1.png": 1})
    with pytest.raises(UserError, match=r"several lists name images and labels \(one.csv, two"):
        open_dataset("auto", tmp_path)
    assert len(open_dataset("auto", tmp_path / "two.csv").split("train")) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("path=nothing", "has no column nothing for path; it has image, label, x"),
        ("label=nothing", "has no column nothing for label"),
    ],
)
def test_a_wrong_column_is_named(tmp_path, columns, message):
    write_tree(tmp_path, {"l.csv": lines("image,label,x", "0.png,a,1"), "0.png": 0})
    with pytest.raises(UserError, match=message):
        open_dataset("auto", tmp_path / "l.csv", columns=columns)


def test_two_readings_of_one_list_have_separate_caches(tmp_path):
    import os

    table = lines("path,label,other", "0.png,a,c", "1.png,b,d")
    write_tree(tmp_path, {"l.csv": table, "0.png": 0, "1.png": 1})
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    for _ in range(2):
        assert open_dataset("auto", tmp_path).split("train").index.class_names == ("a", "b")
        other = open_dataset("auto", tmp_path, columns="label=other").split("train")
        assert other.index.class_names == ("c", "d")


@pytest.mark.parametrize(
    ("table", "folder"),
    [
        ("a.png,cat\nb.png,dog\nc.png,cat\n", "images/"),
        ("a,cat\nb,dog\nc,cat\n", "images/"),
        ("images/a.png,cat\nimages/b.png,dog\nimages/c.png,cat\n", "images/"),
        ("a,cat\nb,dog\nc,cat\n", "{}/"),
    ],
)
def test_a_first_line_that_is_a_sample_is_not_lost(tmp_path, table, folder):
    images = {f"{folder.format(k % 2)}{name}.png": 0 for k, name in enumerate("abc")}
    write_tree(tmp_path, {"list.csv": table, **images})
    for root in (tmp_path, tmp_path / "list.csv"):
        with pytest.raises(UserError, match=r"list\.csv: its first line is a sample, no header"):
            open_dataset("auto", root)


def test_paths_as_other_machines_write_them(tmp_path):
    write_tree(tmp_path / "set", {"img/a.png": 0, "img/b.png": 1})
    for start in ("img\\", f"{tmp_path}/set/img/", "C:\\data\\", "/home/x/", "./img/"):
        table = lines("path,label", f"{start}a.png,cat", f"{start}b.png,dog")
        write_tree(tmp_path / "set", {"l.csv": table})
        dataset = open_dataset("auto", tmp_path / "set")
        assert rows(dataset) == [("img/a.png", "cat"), ("img/b.png", "dog")]


def test_a_list_of_json_objects(tmp_path):
    table = json.dumps([{"file_name": "a.png", "label": "x"}, {"file_name": "b.png", "label": "y"}])
    write_tree(tmp_path, {"l.json": table, "boxes.json": "{}", "a.png": 0, "b.png": 1})
    assert rows(open_dataset("auto", tmp_path)) == [("a.png", "x"), ("b.png", "y")]


def test_several_columns_of_labels_are_named(tmp_path):
    table = lines("path,class_name,class_id", "a.png,x,1", "b.png,y,2")
    write_tree(tmp_path, {"l.csv": table, "a.png": 0, "b.png": 1})
    with pytest.raises(UserError, match="class_name and class_id may each be the label"):
        open_dataset("auto", tmp_path)
    assert rows(open_dataset("auto", tmp_path, columns="label=class_id"))[0] == ("a.png", "1")


def test_lists_beside_class_folders_share_one_look_at_all_names(tmp_path, monkeypatch):
    lists = {f"info{k}.csv": lines("wnid,words", "a,apple", "b,bee") for k in range(3)}
    write_tree(tmp_path, {"a/1.png": 0, "b/2.png": 1, **lists})
    looks = []

    def counted(root, start):
        looks.append(start)
        return names_of_images(root, start)

    monkeypatch.setattr(places, "names_of_images", counted)
    assert open_dataset("auto", tmp_path).layout.name == "folder"
    assert looks == [""]


def test_images_of_a_list_in_several_folders_of_different_sizes(tmp_path):
    images = {f"images/{'a' if k < 4 else 'b'}/x{k}.png": k % 2 for k in range(6)}
    table = lines("name,class", *(f"x{k},{'ab'[k % 2]}" for k in range(6)))
    write_tree(tmp_path, {"list.csv": table, **images})
    assert [path for path, _ in rows(open_dataset("auto", tmp_path))] == list(images)


def test_an_image_that_is_nowhere_does_not_change_where_the_others_are(tmp_path):
    images = {f"images/{k}.png": k % 2 for k in range(6)}
    table = lines("name,class", *(f"{k}.png,{'ab'[k % 2]}" for k in range(7)))
    write_tree(tmp_path, {"list.csv": table, **images, "other/0.png": 1})
    paths = open_dataset("auto", tmp_path).split("train").index.paths
    assert list(paths) == [f"images/{k}.png" for k in range(7)]


def test_a_folder_that_is_no_split_among_folders_of_splits(tmp_path):
    listed = [f"train/{k}.png,{'ab'[k % 2]}" for k in range(300)]
    write_tree(
        tmp_path,
        {
            "list.csv": lines("path,label", *listed, "test/0.png,a", "extra/0.png,b"),
            **{f"train/{k}.png": k % 2 for k in range(300)},
            "test/0.png": 0,
            "extra/0.png": 1,
        },
    )
    with pytest.raises(UserError, match=r"list\.csv, line 303: split 'extra' is not one of train"):
        open_dataset("auto", tmp_path / "list.csv").split("train")
