"""Files of options that may be anybody's."""

import json
import os
import time

import pytest

from alr_fast.errors import UserError
from alr_fast.training.config.command_line import parse
from alr_fast.training.config.schema import overlaid
from alr_fast.training.config.yaml_file import read_options
from alr_fast.training.output.run_folder import read_config
from helpers.patience import PATIENCE

NINE = ", ".join(["*{0}"] * 9)
BOMB = "a: &a [1, 2, 3]\n" + "".join(
    f"{name}: &{name} [{NINE.format(before)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{NINE.format(before)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
REFUSED = {
    "aliases": (BOMB, "its aliases stand for more than"),
    "merged": (MERGES, "its aliases stand for more than"),
    "in itself": ("a: &a [*a]", "its aliases stand for more than"),
    "deep": ("a: " + "[" * 20_000, "not valid YAML"),
    "long": ("a: " + "1" * 200_000, "config.yaml"),
    "digits": ("a: " + "1" * 90_000, "integer string conversion"),
    "object": ("a: !!python/object/apply:os.system [id]", "not valid YAML"),
    "tag": ("a: !!binary 'x'", None),
    "list": ("[1, 2]", "must contain options"),
    "numbers": ("1: 2", "must contain options"),
    "key": ("{[1]: 2}", None),
    "dates": ("a: 2026-13-45", None),
    "bytes": (b"a: \xff", "codec can't decode"),
    "control": (b"a: \x00", "not valid YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_no_options(tmp_path, case):
    text, why = REFUSED[case]
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.perf_counter()
    for read in (
        lambda: read_config(tmp_path),
        lambda: parse(["--config", str(tmp_path / "config.yaml")]),
    ):
        with pytest.raises(UserError) as caught:
            read()
        message = str(caught.value)
        assert f"{tmp_path / 'config.yaml'}: " in message or why is None
        assert "\n" not in message and (why is None or why in message)
    assert time.perf_counter() - began < PATIENCE


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read \("):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"--config .*config\.yaml: "):
        parse(["--config", str(tmp_path / "config.yaml")])


def test_anchors_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: [2]}\nb: *a\nc:\n  <<: *a\n  x: 3\n")
    assert read_options(path) == {
        "a": {"x": 1, "y": [2]},
        "b": {"x": 1, "y": [2]},
        "c": {"x": 3, "y": [2]},
    }
    path.write_text("")
    assert read_options(path) == {}


def test_a_long_number_of_base_sixty_takes_no_time(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1" + ":1" * 45_000)
    began = time.perf_counter()
    assert read_options(path)["a"] > 60
    assert time.perf_counter() - began < PATIENCE


WRONG = [5, -1.5, True, {"a": 1}, [1], [None], [{}], [["alr"]], ["alr", 3]]


@pytest.mark.parametrize("name", ["recipe", "data_root", "methods", "plugins", "resume"])
@pytest.mark.parametrize("value", WRONG, ids=str)
def test_options_that_decide_about_the_others_must_be_text(tmp_path, name, value):
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps({name: value}))
    with pytest.raises(UserError) as caught:
        parse(["--config", str(path)])
    assert f"{path}: {name} must be text, got {value!r}; " in str(caught.value)


@pytest.mark.parametrize("name", ["recipe", "data_root", "resume"])
def test_a_list_of_text_is_for_options_of_several_values(tmp_path, name):
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps({name: ["digits"]}))
    with pytest.raises(UserError, match=rf"{name} must be text, got \['digits'\]; "):
        parse(["--config", str(path)])


REFUSING = ["runs", "methods", "plugins", "noise.rate", "optim.lr", "log.to", "sat.momentum"]
ACCEPTING = ["data_root", "data.mean", "noise.seed", "alr.warmup_epochs", "checkpoint.steps"]


@pytest.mark.parametrize("name", [*REFUSING, *ACCEPTING])
def test_null_is_for_options_that_may_have_no_value(tmp_path, name):
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(overlaid({}, {name: None})))
    if name in ACCEPTING:
        parse(["--config", str(path)])
        return
    with pytest.raises(UserError, match=f"a.yaml: {name} must not be null; leave it"):
        parse(["--config", str(path)])
