"""Methods: options from the arguments of their losses, arguments from the run, plugins."""

import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alr_fast.errors import UserError
from alr_fast.noise import inject
from alr_fast.noise.transition import known_transition
from alr_fast.train import main
from alr_fast.training import methods
from alr_fast.training.config.check import with_default_options
from alr_fast.training.config.command_line import parse
from alr_fast.training.config.schema import Config
from alr_fast.training.methods import METHODS, keeps_bank, options_of
from alr_fast.training.run_data import load_data
from alr_fast.training.trained_model import load_for_data
from alr_fast.utils.random import stream
from helpers.image_folder import write_folder

SMALL = ["--data.limit", "200", "--data.test_limit", "50", "--optim.epochs", "2"]
SMALL += ["--log.show", "quiet", "--optim.batch_size", "50"]

PLUGIN = '''
import torch
from alr_fast.errors import UserError
from alr_fast.losses import PlainLoss
from alr_fast.training.methods import method

@method("{name}")
class MyLoss(PlainLoss):
    """A loss of mine.

    Args:
        power: Exponent.
    """

    def __init__(self, *, power: float = 2.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        if power <= 0:
            raise {error}
        self.power = power

    def rows(self, logits, labels, index):
        p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
        return (1 - p) ** self.power
'''


def plugin_text(name, error='UserError("must be above 0", argument="power", value=power)'):
    return PLUGIN.format(name=name, error=error)


def train(tmp_path, *words):
    assert main([*SMALL, "--runs", str(tmp_path / "runs"), *words]) == 0
    return tmp_path / "runs" / "latest"


def summary(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture
def no_plugins():
    """Removes methods that a test adds."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_options_are_the_arguments_of_the_loss():
    assert asdict(options_of("elr")()) == {"momentum": 0.7, "weight": 3.0}
    assert asdict(options_of("ce")()) == {}
    assert asdict(options_of("smearing")()) == {"matrix": None}
    assert asdict(options_of("distillation")()) == {"teacher": "label_smoothing", "temperature": 1}
    assert set(asdict(options_of("sat")())) == {"momentum", "warmup_epochs"}
    kept = [name for name in METHODS if keeps_bank(name)]
    assert kept == ["selc", "alr", "sat", "elr"]


def test_only_the_options_of_trained_methods_are_written():
    written = parse(["--methods", "elr,ce", "--elr.weight", "2"]).as_dict()
    assert written["elr"] == {"momentum": 0.7, "weight": 2.0}
    assert written["ce"] == {}
    assert not {"alr", "sat", "options"} & written.keys()


def test_the_warm_up_is_a_sixth_by_default():
    config = parse(["--methods", "alr,sat,selc", "--sat.warmup_epochs", "3"])
    warmups = [config.options[name].warmup_epochs for name in ("alr", "sat", "selc")]
    assert warmups == [10, 3, 10]
    assert config.options["label_smoothing"].warmup_epochs == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods elr --elr.momentum 2", r"--elr\.momentum 2\.0: must lie in \[0, 1\]"),
        (
            "--methods label_smoothing --label_smoothing.smoothing 1.5",
            r"--label_smoothing\.smoothing 1\.5: must be finite",
        ),
        ("--methods label_smoothing --label_smoothing.warmup_epochs 60", "warmup_epochs 60"),
        (
            "--methods label_smoothing,distillation --distillation.temperature 0",
            r"--distillation\.temperature 0\.0: must",
        ),
        ("--methods smearing", r"--smearing\.matrix: missing; pass a file of numbers"),
        (
            "--methods distillation",
            r"--distillation\.teacher label_smoothing: is not trained earlier",
        ),
        ("--methods distillation,label_smoothing", "put label_smoothing first in --methods"),
        ("--methods distillation --distillation.teacher x.safetensors", "neither a method .*nor"),
        (
            "--methods forward_correction --transition.source mine",
            r"--transition\.source mine: must",
        ),
        (
            "--methods forward_correction,ce --transition.source anchor",
            r"--transition\.net ce: is not trained earlier by this run",
        ),
        ("--data.validation 1", r"--data\.validation 1\.0: must be at least 0 and below 1"),
        ("--plugins nosuch_module", "--plugins nosuch_module: cannot be imported"),
        ("--plugins /no/such.py", "--plugins /no/such.py: cannot be imported"),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_read(words, message):
    with pytest.raises(UserError, match=message) as error:
        parse(words.split())
    assert "\n" not in str(error.value)


def test_wrong_options_of_methods_that_are_not_trained_do_not_matter():
    assert parse(["--methods", "ce", "--elr.momentum", "2"]).methods == ["ce"]


def test_all_methods_train_in_one_run(tmp_path):
    matrix = tmp_path / "matrix.csv"
    np.savetxt(matrix, 0.8 * np.eye(10) + 0.2 * np.roll(np.eye(10), 1, axis=1), delimiter=",")
    names = ["ce", "label_smoothing", *(name for name in METHODS if name not in
             ("ce", "label_smoothing"))]  # fmt: skip
    run = train(tmp_path, "--methods", ",".join(names), "--smearing.matrix", str(matrix))
    found = summary(run)["methods"]
    assert list(found) == names
    for name, result in found.items():
        assert 0.05 < result["test_accuracy_last"] < 1, name
        assert (run / f"{name}_bank.safetensors").exists() == keeps_bank(name)
        assert all(t.isfinite().all() for t in load_file(run / f"{name}.safetensors").values())
    # No two methods lead to the same weights.
    weights = {name: load_file(run / f"{name}.safetensors")["head.weight"] for name in names}
    for position, name in enumerate(names):
        for other in names[:position]:
            assert not torch.equal(weights[name], weights[other]), (name, other)
    # ELR's bank starts at zero: after two epochs a row sums to 1 - momentum^2.
    rows = load_file(run / "elr_bank.safetensors")["rows"]
    torch.testing.assert_close(rows.sum(1), torch.full((len(rows),), 1 - 0.7**2))


def transition_loss(tmp_path, monkeypatch, *words):
    """The transition matrix of the loss of a run, and the run."""
    seen = []
    original = methods.METHODS["forward_correction"]

    class Watched(original):
        def __init__(self, transition: torch.Tensor, *, reduction: str = "mean"):
            seen.append(transition.numpy().copy())
            super().__init__(transition, reduction=reduction)

    monkeypatch.setitem(METHODS, "forward_correction", Watched)
    run = train(tmp_path, *words)
    return seen[-1], run


def test_the_known_transition_is_that_of_the_injected_noise(tmp_path, monkeypatch):
    found, _ = transition_loss(tmp_path, monkeypatch, "--methods", "forward_correction")
    config = parse(SMALL)
    index = load_data(config.data, None, log=print).train.index
    noise = inject(index.labels, num_classes=10, kind="symmetric", rate=0.4, seed=0)
    expected = noise.counts / noise.counts.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(known_transition(noise.original, noise.labels, 10), expected)


@pytest.mark.parametrize("source", ["anchor", "confident"])
def test_estimates_come_from_a_model_of_this_run_or_another(tmp_path, monkeypatch, source):
    words = ["--methods", "ce,forward_correction", "--transition.source", source]
    found, run = transition_loss(tmp_path, monkeypatch, *words)
    np.testing.assert_allclose(found.sum(1), 1)
    words = ["--methods", "forward_correction", "--transition.source", source]
    words += ["--transition.net", str(run / "ce.safetensors")]
    again, run = transition_loss(tmp_path, monkeypatch, *words)
    np.testing.assert_array_equal(again, found)
    written = np.loadtxt(run / "forward_correction_transition.csv", delimiter=",")
    np.testing.assert_allclose(written, found, rtol=1e-8)


def test_a_matrix_from_a_file(tmp_path, monkeypatch):
    matrix = np.full((10, 10), 0.04) + 0.6 * np.eye(10)
    np.save(tmp_path / "t.npy", matrix)
    words = ["--methods", "forward_correction", "--transition.source", str(tmp_path / "t.npy")]
    found, _ = transition_loss(tmp_path, monkeypatch, *words)
    np.testing.assert_array_equal(found, matrix)


def test_the_teacher_predicts_every_sample(tmp_path, monkeypatch):
    seen = []
    original = methods.METHODS["distillation"]

    class Watched(original):
        def __init__(
            self, teacher: torch.Tensor, *, temperature: float = 1.0, reduction: str = "mean"
        ):
            seen.append(teacher)
            super().__init__(teacher, temperature=temperature, reduction=reduction)

    monkeypatch.setitem(METHODS, "distillation", Watched)
    words = ["--methods", "ce,distillation", "--distillation.teacher", "ce"]
    run = train(tmp_path, *words)
    data = load_data(parse(SMALL).data, None, log=print)
    order = stream("shards", 0).permutation(len(data.train))  # as the sampler shuffles
    pixels = torch.from_numpy(data.train.images.array[order]).float()
    model = load_for_data(run / "ce.safetensors", num_classes=10, input_shape=(1, 8, 8))
    with torch.no_grad():
        expected = model((pixels / 255 - 0.5) / 0.5).softmax(-1)
    torch.testing.assert_close(seen[-1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "smearing", "--smearing.matrix", "FILE"], "2 x 3 numbers; .* needs 10 x 10"),
        (["--methods", "forward_correction", "--transition.source", "FILE"], "2 x 3 numbers"),
        (
            ["--methods", "ce,distillation", "--distillation.teacher", "alone.safetensors"],
            "alone.safetensors: cannot be read as weights .*pass the weights of a run",
        ),
        (
            ["--methods", "ce,backward_correction", "--transition.source", "flat.csv"],
            "backward_correction: the transition matrix has no usable inverse",
        ),
    ],
)
def test_files_that_do_not_fit_are_found_before_training(
    tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    np.savetxt("flat.csv", np.full((10, 10), 0.1), delimiter=",")
    (tmp_path / "m.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "alone.safetensors").write_bytes(b"")
    words = [str(tmp_path / "m.csv") if word == "FILE" else word for word in words]
    assert main([*SMALL, *words, "--runs", str(tmp_path / "runs")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_a_model_of_other_classes_is_no_teacher(tmp_path, capsys):
    run = train(tmp_path, "--methods", "ce")
    weights = load_file(run / "ce.safetensors")
    weights["head.weight"], weights["head.bias"] = torch.zeros(3, 64), torch.zeros(3)
    save_file(weights, run / "ce.safetensors")
    words = ["--methods", "distillation", "--distillation.teacher", str(run / "ce.safetensors")]
    assert main([*SMALL, *words, "--runs", str(tmp_path / "others")]) == 2
    assert "does not fit 10 classes and images of 1 channels" in capsys.readouterr().err
    assert not (tmp_path / "others").exists()


def test_a_model_of_classes_in_another_order_is_no_teacher(tmp_path, capsys):
    run = train(tmp_path, "--methods", "ce")
    path, weights = run / "ce.safetensors", load_file(run / "ce.safetensors")
    with safe_open(path, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "sha256"}
    words = ["--methods", "distillation", "--distillation.teacher", str(run / "ce.safetensors")]
    words += ["--runs", str(tmp_path / "others")]
    cases = {
        "0213456789": "1 as class 2, in this data set it is class 1",
        "1234567890": "0 as class 9, in this data set it is class 0",
    }
    for names, why in cases.items():
        save_file(weights, path, metadata | {"class_names": json.dumps(list(names))})
        assert main([*SMALL, *words]) == 2
        message = capsys.readouterr().err
        assert f"--distillation.teacher {run.resolve() / 'ce.safetensors'}: was trained " in message
        assert why in message and "pass a model of the same classes in the same order" in message
        assert not (tmp_path / "others").exists()
    # Weights of an earlier version say nothing: the summary of their run does.
    save_file(weights, path)
    summary = json.loads((run / "summary.json").read_text())
    summary["data"]["classes"] = list("0213456789")
    (run / "summary.json").write_text(json.dumps(summary))
    assert main([*SMALL, *words]) == 2
    assert "1 as class 2, in this data set it is class 1" in capsys.readouterr().err
    save_file(weights, path, metadata | {"class_names": json.dumps(list("abcdefghij"))})
    assert main([*SMALL, *words]) == 0  # names alone tell nothing


def test_the_transition_is_unknown_without_true_labels(tmp_path, capsys):
    write_folder(tmp_path / "data", train={"a": 6, "b": 6}, test={"a": 2, "b": 2})
    words = ["--data-root", str(tmp_path / "data"), "--model.name", "conv-tiny"]
    words += ["--methods", "forward_correction", "--runs", str(tmp_path / "runs")]
    assert main(words) == 2
    assert "--transition.source known: the true labels" in capsys.readouterr().err


def test_sat_needs_the_sum_over_all_processes():
    assert "all_sum" in METHODS["sat"].needs
    assert "all_sum" not in asdict(options_of("sat")())


def test_validation_samples_are_held_out_with_their_noisy_labels(tmp_path, capsys):
    words = ["--methods", "alr", "--noise.kind", "symmetric-exclusive", "--noise.rate", "1"]
    run = train(tmp_path, *words, "--data.validation", "0.25", "--alr.warmup_epochs", "1")
    found = summary(run)
    assert "held out" in capsys.readouterr().out  # a column of the table
    assert found["data"]["train_samples"] == 150
    assert found["data"]["validation_samples"] == 50
    assert len(load_file(run / "alr_bank.safetensors")["rows"]) == 150
    ids = load_file(run / "alr_bank.safetensors")["ids"]
    assert len(set(ids.tolist())) == 150
    accuracy = found["methods"]["alr"]["validation_accuracy_last"]
    # Every label is wrong: a perfect model would have an accuracy of 0.
    assert (50 * accuracy) == pytest.approx(round(50 * accuracy))
    assert (
        train(tmp_path, "--methods", "ce")
        and summary(tmp_path / "runs" / "latest")["methods"]["ce"]["validation_accuracy_last"]
        is None
    )


@pytest.mark.parametrize("share", ["0.001", "0.999999"])
def test_validation_shares_that_leave_nothing(tmp_path, capsys, share):
    words = ["--data.validation", share, "--runs", str(tmp_path / "runs")]
    status = main([*SMALL, *words])
    if share == "0.001":
        assert status == 2
        assert "leaves some on both sides" in capsys.readouterr().err
    else:  # one sample is left, too few to train on
        assert status == 2
        assert "too few" in capsys.readouterr().err


def test_shares_of_predictions_add_up_to_the_training_accuracy(tmp_path):
    run = train(tmp_path, "--methods", "ce", "--optim.epochs", "3")
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    config = parse(SMALL)
    index = load_data(config.data, None, log=print).train.index
    noise = inject(index.labels, num_classes=10, kind="symmetric", rate=0.4, seed=0)
    clean = float((noise.labels == noise.original).mean())
    for line in lines[1:]:
        row = dict(zip(lines[0], line, strict=True))
        right, memorised = float(row["clean_correct"]), float(row["mislabelled_memorised"])
        expected = clean * right + (1 - clean) * memorised
        assert float(row["train_accuracy"]) == pytest.approx(expected)
        assert 0 <= memorised + float(row["mislabelled_correct"]) <= 1


def test_without_noise_there_are_no_mislabelled_samples(tmp_path):
    run = train(tmp_path, "--methods", "ce", "--noise.kind", "none", "--noise.rate", "0")
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    row = dict(zip(header, rows[-1], strict=True))
    assert row["mislabelled_correct"] == row["mislabelled_memorised"] == ""
    assert float(row["clean_correct"]) == pytest.approx(float(row["train_accuracy"]))


def test_a_file_of_the_user_adds_a_method(tmp_path, no_plugins, capsys):
    plugin = tmp_path / "my_loss.py"
    plugin.write_text(plugin_text("mine"))
    config = tmp_path / "mine.yaml"
    config.write_text(f"plugins: {plugin}\nmethods: ce,mine\nmine: {{power: 1.5}}\n")
    run = train(tmp_path, "--config", str(config))
    assert set(summary(run)["methods"]) == {"ce", "mine"}
    assert "power: 1.5" in (run / "config.yaml").read_text()
    # config.yaml of the run is enough to repeat it.
    again = parse(["--config", str(run / "config.yaml"), "--mine.power", "3"])
    assert again.options["mine"].power == 3
    with pytest.raises(UserError, match=r"--mine\.power -1\.0: must be above 0"):
        parse(["--config", str(config), "--mine.power", "-1"])
    plugin.write_text(plugin_text("mine", error='ValueError(f"power {power} is not above 0")'))
    with pytest.raises(UserError, match=r"--methods mine: power -1\.0 is not above 0"):
        parse(["--config", str(config), "--mine.power", "-1"])
    with pytest.raises(SystemExit):
        parse(["--plugins", str(plugin), "--help-all"])
    assert "--mine.power X Exponent." in " ".join(capsys.readouterr().out.split())


def test_a_plugin_cannot_take_a_name(tmp_path, no_plugins):
    plugin = tmp_path / "thief.py"
    plugin.write_text(plugin_text("alr"))
    with pytest.raises(UserError, match="method 'alr': the name is taken"):
        parse(["--plugins", str(plugin)])
    plugin.write_text(plugin_text("not a name"))
    with pytest.raises(UserError, match="not an identifier; choose another one"):
        parse(["--plugins", str(plugin)])


def test_every_option_of_a_plugin_needs_a_default(tmp_path, no_plugins):
    plugin = tmp_path / "half.py"
    plugin.write_text(plugin_text("half").replace("power: float = 2.0", "power: float"))
    with pytest.raises(UserError, match="method half: give argument power of MyLoss a default"):
        parse(["--plugins", str(plugin), "--methods", "half"])


def test_default_options_are_those_of_all_methods():
    options = with_default_options(Config()).options
    assert set(options) == set(METHODS)
    assert math.isclose(options["elr"].weight, 3.0)
