"""Paths as people write them, in options and in lists."""

import argparse
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alr_fast.data.__main__ import main as data_main
from alr_fast.data.layouts.lists import SampleList
from alr_fast.data.paths import WrittenPaths, expanded, path_option, relative_path, text_option
from alr_fast.errors import UserError
from alr_fast.noise.__main__ import main as noise_main

# Options.


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return home


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/x", "{home}/x"),
        ("~", "{home}"),
        ("$HOME/x", "{home}/x"),
        ("${DATA}/a b", "/data/a b"),
        ("$DATA", "/data"),
        ("~/$DATA/x", "{home}//data/x"),
        ("a~b/c", "a~b/c"),
        ("plain", "plain"),
        ("~root/x", os.path.expanduser("~root/x")),
        ("costs 5$", "costs 5$"),
    ],
)
def test_paths_of_options_are_expanded(home, text, path):
    assert expanded(text) == expanded(Path(text)) == Path(path.format(home=home))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$NOWHERE/x", "the variable NOWHERE is not set"),
        ("${NOWHERE}", "the variable NOWHERE is not set"),
        ("${}", r"the variable \$\{\} is not set"),
        ("~nobody.here/x", "there is no user nobody.here; write the folder out, or ./~nobody"),
    ],
)
def test_what_cannot_be_expanded_is_refused(home, text, problem):
    with pytest.raises(UserError, match=problem):
        expanded(text)
    with pytest.raises(argparse.ArgumentTypeError, match=problem):
        path_option(text)


def test_a_dollar_sign_in_a_name_that_exists_stays(home):
    for name in ("$RECYCLE.BIN", "~old"):
        Path(name).mkdir()
        assert expanded(name) == Path(name)
    assert text_option("auto") == "auto" and text_option("~/x") == f"{home}/x"


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (data_main, ["verify", "~/nothing"]),
        (data_main, ["pack", "~/nothing", "~/out"]),
        (noise_main, ["--kind", "none", "--output", "~/x.npz", "--data-root", "~/nothing"]),
    ],
)
def test_commands_expand_their_paths(home, capsys, main, argv):
    assert main(argv) == 2
    assert f"{home}/nothing" in capsys.readouterr().err
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (data_main, ["verify", "$NOWHERE"]),
        (data_main, ["verify", ".", "--output", "$NOWHERE/x.csv"]),
        (data_main, ["pack", ".", "$NOWHERE"]),
        (data_main, ["pack", ".", "out", "--exclude", "$NOWHERE/x.csv"]),
        (noise_main, ["--kind", "none", "--output", "$NOWHERE/x.npz"]),
        (noise_main, ["--kind", "matrix", "--output", "x", "--matrix", "$NOWHERE/x.npz"]),
    ],
)
def test_commands_name_unset_variables(home, capsys, main, argv):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "the variable NOWHERE is not set" in error and error.count("\n") == 1


# Lists.


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "da ta"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "1.jpg").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    return root


@pytest.mark.parametrize(
    "text",
    [
        "cat/1.jpg", "./cat/1.jpg", "cat//1.jpg", "cat/./1.jpg", "dog/../cat/1.jpg",
        "cat\\1.jpg", ".\\cat\\1.jpg", "{root}/cat/1.jpg", "{root}/dog/../cat/1.jpg",
        "~/da ta/cat/1.jpg", "file://{root}/cat/1.jpg", "file:{root}/cat/1.jpg",
        "file://localhost{root}/cat/1.jpg", "FILE://{quoted}/cat/1.jpg", "{link}/cat/1.jpg",
    ],
)  # fmt: skip
def test_written_paths_become_relative(root, text):
    link = root.with_name("link")
    link.symlink_to(root)
    quoted = str(root).replace(" ", "%20")
    text = text.format(root=root, quoted=quoted, link=link)
    assert relative_path(text, root, "list, line 1") == "cat/1.jpg"
    assert relative_path(os.fsencode(text), root, "list, line 1") == b"cat/1.jpg"
    assert relative_path(text, link, "list, line 1") == "cat/1.jpg"
    assert paths_of(root, [text.encode()]) == ["cat/1.jpg"]


def paths_of(root, names):
    samples = SampleList(root / "list.csv", root=root)
    samples.extend([b"first.jpg", *names], [0] * (len(names) + 1), list(range(len(names) + 1)))
    return list(samples.paths())[1:]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("../x", "leads out"), ("cat/../../x", "leads out"), ("/etc/passwd", "leads out"),
        (".", "leads out"), ("..\\x", "leads out"), ("~/x", "leads out"),
        ("{root}2/x", "leads out"), ("{root}", "leads out"), ("{root}/cat/../..", "leads out"),
        ("C:\\data\\1.jpg", "leads out"), ("d:/data/1.jpg", "leads out"),
        ("\\\\server\\share\\1.jpg", "leads out"), ("file:///etc/passwd", "leads out"),
        ("file://{root}/cat/%2e%2e/%2e%2e/x", "leads out"), ("file://server/share/x", "leads out"),
        ("s3://bucket/1.jpg", "is an address"), ("gs://b/1.jpg", "is an address"),
        ("https://x.org/1.jpg", "is an address"), ("HTTP://x.org/1.jpg", "is an address"),
        ("hf://datasets/x", "is an address"), ("az://c/x", "is an address"),
        ("abfss://c@a/x", "is an address"), ("hdfs://n/x", "is an address"),
        ("cat/1\0.jpg", "zero byte"), ("file://{root}/cat/1%00.jpg", "zero byte"),
    ],
)  # fmt: skip
def test_paths_that_are_refused(root, text, problem):
    text = text.format(root=root)
    with pytest.raises(UserError, match=f"^list.csv, line 7: .*{problem}"):
        relative_path(text, root, "list.csv, line 7")
    with pytest.raises(UserError, match=f"list.csv, line 1: .*{problem}") as error:
        paths_of(root, [text.encode()])
    assert "\n" not in str(error.value)


def test_a_backslash_in_a_name_that_may_exist_stays(root):
    assert paths_of(root, [b"a\\b.jpg", b"cat\\1.jpg"]) == ["a/b.jpg", "cat/1.jpg"]
    (root / "x\\y.jpg").touch()
    assert paths_of(root, [b"a\\b.jpg", b"x\\y.jpg"]) == ["a\\b.jpg", "x\\y.jpg"]
    assert paths_of(root, [b"cat/x\\b.jpg"]) == ["cat/x/b.jpg"]  # nothing such in this folder


def test_bytes_that_are_not_utf_8_name_the_file_that_exists(root):
    latin, utf8 = "B\u00e4r.jpg".encode("cp1252"), "B\u00e4r.jpg".encode()
    assert paths_of(root, [latin]) == [os.fsdecode(latin)]
    Path(os.fsdecode(root / os.fsdecode(utf8))).touch()
    assert paths_of(root, [latin]) == ["B\u00e4r.jpg"]
    Path(os.fsdecode(root / os.fsdecode(latin))).touch()
    assert paths_of(root, [latin]) == [os.fsdecode(latin)]


def test_two_spellings_of_one_path_are_found(root):
    with pytest.raises(UserError, match=r"names .cat/1\.jpg. again, as line 1 did"):
        paths_of(root, [b"cat/1.jpg", f"{root}/cat/1.jpg".encode()])


def test_a_prefix_belongs_to_every_path(root):
    samples = SampleList(root / "list.txt", prefix=b"cat/", root=root)
    samples.extend([b"cat/./1.jpg", f"cat/{root}/cat/2.jpg".encode()], [0, 0], [1, 2])
    assert list(samples.paths()) == ["cat/1.jpg", "cat/2.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        b"a",
        b"a/b c.jpg",
        "\u00e4/\u732b.jpg".encode(),
        b"a:b",
        b"a..b",
        b"a.",
        b"~a",
        b"x~",
        b"...",
    ],
)
def test_paths_that_stay_as_they_are(root, name):
    assert paths_of(root, [name]) == [os.fsdecode(name)]
    if not WrittenPaths.is_odd(name):
        assert not WrittenPaths.any_odd(b"x\0" + name + b"\0")


@pytest.mark.parametrize(
    "name", [b"/a", b"./a", b"a/", b"a//b", b"a/./b", b"a/../b", b"~/a", b"C:/a", b"a\\b", b"\xff",
             b"s3://a", b"file:/a", b""],
)  # fmt: skip
def test_one_odd_path_among_many_is_seen(name):
    assert WrittenPaths.any_odd(b"x\0" + name + b"\0y\0")
    assert WrittenPaths.any_odd(name + b"\0y\0")
    assert not name or WrittenPaths.is_odd(name)


PIECES = st.sampled_from(
    ["a", "b.jpg", "..", ".", "/", "\\", "~", "{root}/", "file://", "C:", "\udce4"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=6).map("".join), min_size=1, max_size=8))
def test_what_is_remembered_of_folders_changes_nothing(tmp_path_factory, texts):
    root = tmp_path_factory.getbasetemp() / "root"
    (root / "a").mkdir(parents=True, exist_ok=True)
    (root / "a" / "x\\y").touch()
    names = [os.fsencode(text.format(root=root)) for text in texts]
    written = WrittenPaths(root)
    for name in names:
        results = []
        for paths in (written, WrittenPaths(root)):
            try:
                results.append(paths.relative(name, "line 1"))
            except UserError as error:
                results.append(str(error))
        assert results[0] == results[1]
        if isinstance(results[0], bytes):
            full = os.path.realpath(os.path.join(os.fsencode(root), results[0]))
            assert full.startswith(os.path.realpath(os.fsencode(root)) + b"/")
            if not WrittenPaths.is_odd(name):
                assert results[0] == name


def test_a_home_folder_with_backslashes(home):
    root = home / "photos"
    root.mkdir()
    assert relative_path("~\\photos\\a\\b.jpg", root, "line 1") == "a/b.jpg"
    assert relative_path(b"~\\photos\\\xe4.jpg", root, "line 1") == b"\xe4.jpg"
    for name in (b"~\\\xe4", b"~/\xe4"):
        with pytest.raises(UserError, match="leads out of the data folder"):
            relative_path(name, root, "line 1")
