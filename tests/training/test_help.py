"""The help of training, and the options that a mistake is answered with."""

import re

import pytest

from alr_fast.errors import UserError
from alr_fast.training.config.command_line import parse
from alr_fast.training.config.schema import recipe_names
from alr_fast.training.methods import METHODS

FIRST = [
    *("--data-root", "--data", "--labels", "--recipe", "--methods", "--noise.kind", "--noise.rate"),
    *("--model.name", "--optim.epochs", "--optim.batch_size", "--optim.lr", "--seed", "--device"),
    *("--runs", "--resume", "--config"),
]


@pytest.fixture
def shown(capsys, monkeypatch):
    """Returns what a call prints in a terminal of some columns before it ends."""

    def show(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as stop:
            parse(list(words))
        assert stop.value.code == 0
        return capsys.readouterr().out

    return show


def test_the_help_begins_with_what_people_need_first(shown):
    for words in (["--help"], ["-h"], ["--optim.epochs", "3", "--help"]):
        text = shown(*words)
        first, more = text.split("more options:")
        found = re.findall(r"^  (--[\w.-]+)", first.split("first options:")[1], flags=re.MULTILINE)
        assert found == FIRST
        assert len(text.splitlines()) < 90
    for name in [*METHODS, *recipe_names()]:
        assert name in first
    everything = shown("--help-all")
    for name in re.findall(r"--[a-z][\w.-]*", more.split("\n\n")[0]):
        assert f"{name} " in everything or f"{name}," in everything, name


@pytest.mark.parametrize("columns", [60, 80, 120, 300])
@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_the_help_fits_the_terminal(shown, columns, option):
    text = shown(option, columns=columns)
    assert max(map(len, text.splitlines())) <= min(columns, 120)
    assert max(map(len, text.splitlines())) > min(columns, 120) - 10


def test_nothing_internal_is_shown(shown):
    text = shown("--help-all")
    assert not re.search(r"--(optim|alr|elr|data_root|methods\+)[ ,]", text)
    assert "type:" not in text and "Optional[" not in text
    assert "--data, --data.name NAME" in text and "--labels, --data.label_file" in text


def test_the_defaults_are_those_of_the_recipe(shown):
    assert "(default 60)" in shown("--help")
    assert "(default 200)" in shown("--help", "--recipe", "cifar10")


@pytest.mark.parametrize(
    ("words", "similar"),
    [
        ("--lr 1", "--optim.lr"),
        ("--epochs 3", "--optim.epochs"),
        ("--epoch 3", "--optim.epochs"),
        ("--gpu 0", "--device"),
        ("--num-epochs 3", "--optim.epochs"),
        ("--batch-size 8", "--optim.batch_size"),
        ("--momentum .9", "--optim.sgd_momentum or --alr.momentum"),
        ("--momentum .9 --methods elr", "--optim.sgd_momentum or --elr.momentum"),
        ("--elr 3", "--elr.momentum or --elr.weight"),
        ("--noise 0.4", "--noise.kind or --noise.rate or --noise.seed"),
        ("--learning-rate 1", "--optim.lr"),
        ("--weight_decay 0", "--optim.weight_decay"),
        ("--lables x.csv", "--labels"),
        ("--data-rot x", "--data-root"),
        ("--dataroot=x", "--data-root"),
        ("--dataset x", "--data or --data-root"),
        ("--output x", "--runs"),
        ("--arch x", "--model.name"),
        ("--model x", "--model.name"),
        ("--methods+ ce", "--methods"),
        ("--optim.epoch 3", "--optim.epochs"),
        ("--opt.epochs 3", "--optim.epochs"),
        ("--size 3", "--data.image_size or --optim.batch_size"),
        ("--hlep", "--help"),
    ],
)
def test_a_wrong_option_is_answered_with_the_nearest_real_ones(words, similar):
    wrong = words.split()[0].partition("=")[0]
    with pytest.raises(UserError) as caught:
        parse(words.split())
    expected = f"{wrong}: no such option; did you mean {similar}?; --help-all lists every option"
    assert str(caught.value) == expected


def test_what_is_like_no_option_gets_no_suggestion():
    with pytest.raises(UserError, match=r"^--xyzzy: no such option; --help-all lists every option"):
        parse(["--xyzzy"])


def test_a_file_of_options_has_full_names(tmp_path):
    (tmp_path / "c.yaml").write_text("labels: x.csv\n")
    with pytest.raises(UserError, match=r"--labels: no such option"):
        parse(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--methods al", "alr"),
        ("--methods ce,smearng", "smearing"),
        ("--recipe cifar", "cifar10"),
        ("--noise.kind symetric", "symmetric"),
        ("--data cifer10", "cifar10"),
        ("--optim.schedule cosin", "cosine"),
        ("--optim.optimizer sdg", "sgd"),
        ("--precision float23", "float32"),
        ("--log.show line", "lines"),
    ],
)
def test_a_wrong_value_is_answered_with_the_nearest_one(words, value):
    with pytest.raises(UserError, match=f"; did you mean {value}") as caught:
        parse(words.split())
    assert "Literal" not in str(caught.value)
