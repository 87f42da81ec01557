import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
import yaml

from alr_fast.errors import UserError
from alr_fast.training.config.check import with_default_options
from alr_fast.training.config.command_line import parse
from alr_fast.training.config.schema import (
    Config,
    DataConfig,
    NoiseConfig,
    OptimConfig,
    recipe_names,
)
from helpers.features import write_digits


def options(cls=Config, prefix="--"):
    for field in fields(cls):
        default = getattr(cls(), field.name)
        if cls is Config and field.name == "asked":
            continue
        if cls is Config and field.name == "options":
            for name, own in with_default_options(Config()).options.items():
                yield from options(type(own), f"{prefix}{name}.")
        elif is_dataclass(default):
            yield from options(type(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_no_arguments_mean_the_recipe_digits():
    config = parse([])
    assert config.recipe == "digits"
    assert config.methods == ["ce", "alr"]
    assert (config.noise.kind, config.noise.rate, config.noise.seed) == ("symmetric", 0.4, 0)
    assert (config.optim.epochs, config.options["alr"].warmup_epochs) == (60, 10)
    assert (config.options["alr"].momentum, config.options["alr"].entropy_weight) == (0.9, 0.4)


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_shipped_recipe_parses(recipe):
    argv = ["--recipe", recipe]
    if recipe != "digits":
        argv += ["--data-root", "somewhere"]
    assert parse(argv).recipe == recipe


def test_the_recipes_named_in_the_documents_are_shipped():
    assert {"digits", "cifar10"} <= set(recipe_names())


def test_command_line_wins_over_file_wins_over_recipe(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("optim: {epochs: 7, lr: 0.5}\nnoise: {rate: 0.2}\n")
    config = parse(["--optim.epochs", "5", "--config", str(file)])
    assert config.optim.epochs == 5  # command line
    assert config.optim.lr == 0.5  # file
    assert config.noise.rate == 0.2  # file
    assert config.noise.kind == "symmetric"  # recipe
    assert config.optim.sgd_momentum == 0.9  # default


def test_a_config_file_can_name_the_recipe(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("recipe: cifar10\ndata_root: somewhere\n")
    config = parse(["--config", str(file)])
    assert config.recipe == "cifar10"
    assert config.model.name == "resnet34-cifar"


def test_data_root_alone_means_the_recipe_folder():
    config = parse(["--data-root", "somewhere"])
    assert (config.recipe, config.data.name, config.data_root) == ("folder", "auto", "somewhere")
    assert config.noise.kind == "none"


def test_a_file_of_features_means_the_recipe_features(tmp_path):
    file = write_digits(tmp_path / "set.npz", samples=20)
    config = parse(["--data-root", str(file)])
    assert (config.recipe, config.data.name, config.model.name) == ("features", "features", "mlp")
    assert config.noise.kind == "none"
    assert parse(["--data-root", str(file), "--recipe", "folder"]).recipe == "folder"


@pytest.mark.parametrize(
    "argv",
    [
        ["--methods", "alr"],
        ["--methods=alr"],
        ["--methods", "[alr]"],
    ],
)
def test_spellings_of_methods(argv):
    assert parse(argv).methods == ["alr"]


def test_dashes_and_underscores_are_the_same():
    argv = ["--data.crop-padding=3", "--log-every", "4", "--data_root", "a-b", "--recipe=folder"]
    config = parse(argv)
    assert (config.data.crop_padding, config.log.every, config.data_root) == (3, 4, "a-b")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ("", False),
        ("--profile", True),
        ("--profile true", True),
        ("--profile false", False),
        ("--profile=true", True),
        ("--profile=false", False),
        ("--log.profile true", True),
    ],
)
def test_spellings_of_the_profile(argv, wanted):
    config = parse([*argv.split(), "--seed", "3"])
    assert (config.log.profile, config.seed) == (wanted, 3)
    assert parse(["--seed", "3", *argv.split()]).log.profile == wanted


@pytest.mark.parametrize("names", ["csv,wandb", "[csv, wandb]", " csv, wandb "])
def test_spellings_of_the_loggers(names):
    assert parse(["--log.to", names]).log.to == ["csv", "wandb"]


@pytest.mark.parametrize("argv", [["--data", "auto"], ["--data=auto"], ["--data.name", "auto"]])
def test_spellings_of_the_data_set(argv):
    assert parse(["--recipe", "cifar10", "--data-root", "x", *argv]).data.name == "auto"


def test_dotted_overrides():
    argv = "--noise.kind symmetric-exclusive --noise.rate 0.25 --optim.epochs 3 --data.limit 200"
    argv += " --bank.dtype bfloat16 --alr.momentum 0.9 --alr.entropy_weight 0 --seed 4"
    config = parse(argv.split())
    assert (config.noise.kind, config.noise.rate) == ("symmetric-exclusive", 0.25)
    assert (config.noise.seed, config.data.limit, config.bank.dtype) == (4, 200, "bfloat16")
    assert (config.options["alr"].momentum, config.options["alr"].entropy_weight) == (0.9, 0.0)
    assert config.options["alr"].warmup_epochs == 1  # a sixth of three epochs, one at least


def test_one_epoch_has_no_warmup():
    assert parse(["--optim.epochs", "1"]).options["alr"].warmup_epochs == 0


@pytest.mark.parametrize("recipe", [[], ["--data-root", "data"]])
def test_print_config_can_be_read_back(tmp_path, capsys, recipe):
    argv = [*recipe, "--optim.epochs", "9"]
    with pytest.raises(SystemExit) as stop:
        parse([*argv, "--print_config"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["optim"]["epochs"] == 9
    file = tmp_path / "printed.yaml"
    file.write_text(text)
    assert parse(["--config", str(file)]) == parse(argv)


def test_resolved_config_can_be_read_back(tmp_path):
    file = tmp_path / "config.yaml"
    config = parse(["--optim.epochs", "9"])
    file.write_text(yaml.safe_dump(config.as_asked()))
    assert parse(["--config", str(file)]) == config
    file.write_text(yaml.safe_dump(config.as_dict()))
    assert parse(["--config", str(file)]).as_dict() == config.as_dict()


def test_values_that_follow_from_others_follow_again(tmp_path):
    """Options of a trial do not freeze what nobody asked for."""
    trial = parse(["--optim.epochs", "6", "--noise.kind", "none"])
    assert (trial.options["alr"].warmup_epochs, trial.noise.seed, trial.noise.rate) == (1, 0, 0)
    asked = trial.as_asked()
    assert (asked["alr"]["warmup_epochs"], asked["noise"]["seed"]) == (None, None)
    assert trial.resolved() == {"alr.warmup_epochs": 1, "noise.seed": 0, "noise.rate": 0}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(asked))
    longer = parse(["--config", str(file), "--optim.epochs", "60", "--noise.kind", "symmetric",
                    "--seed", "5"])  # fmt: skip
    assert longer.options["alr"].warmup_epochs == 10
    assert (longer.noise.seed, longer.noise.rate) == (5, 0.4)
    file.write_text(yaml.safe_dump(parse(["--alr.warmup_epochs", "3"]).as_asked()))
    assert parse(["--config", str(file), "--optim.epochs", "9"]).options["alr"].warmup_epochs == 3


def test_help_describes_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in options():
        option = {"--data_root": "--data-root", "--warm_start": "--warm-start"}.get(option, option)
        assert re.search(re.escape(option) + r"[ ,]", text), option
    entries = re.split(r"\n  (?=-)", text)[1:]
    assert len(entries) >= len(list(options()))
    for entry in entries:
        words = re.sub(r"^(-\S+[ ,]*|[A-Z_]+\s|\{.*?\})*", "", " ".join(entry.split()))
        assert len(re.sub(r"\(default .*", "", words).split()) >= 2, entry


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--recipe nosuch", "nosuch.*cifar10, cifar10-accuracy, cifar10-small, cifar100"),
        ("--recipe", "--recipe: needs a value"),
        ("--methods ce,nosuch", "nosuch.*ce, label_smoothing, .*alr"),
        ("--methods ,", "name one or more"),
        ("--methods ce,ce", "each once"),
        ("--noise.kind nosuch", "nosuch.*symmetric"),
        ("--noise.rate 1.5", r"--noise\.rate 1\.5: must lie between 0 and 1"),
        ("--noise.rate x", r"--noise\.rate x: must be a number"),
        ("--optim.epochs 0", r"--optim\.epochs 0: must be 1 or more"),
        ("--optim.lr 0", r"--optim\.lr 0"),
        ("--optim.lr .nan", r"--optim\.lr"),
        (
            "--alr.warmup_epochs 60",
            r"alr\.warmup_epochs 60 \(of the recipe, if .* below --optim\.epochs 60",
        ),
        ("--alr.warmup_epochs -1", r"warmup_epochs -1"),
        ("--alr.momentum 1.2", r"--alr\.momentum 1\.2: must lie in \[0, 1\]"),
        ("--alr.entropy_weight -1", r"--alr\.entropy_weight -1\.0: must be 0 or more"),
        ("--bank.dtype float64", r"--bank\.dtype float64: must be one of float32, "),
        ("--data.limit 0", r"--data\.limit 0"),
        ("--data.mean 3", r"--data\.mean 3: must be a list of numbers or null"),
        ("--data.mean [.1,.2]", r"--data\.mean .* 1 channels"),
        ("--data.std [0]", r"--data\.std"),
        ("--data.lmit 3", r"--data\.lmit: no such option; did you mean --data\.limit\?"),
        ("--recipe cifar10", r"cifar10 needs data set cifar10: pass --data-root DIR"),
        ("--optim.gamma 0", r"--optim\.gamma 0"),
        (
            "--optim.schedule step --optim.milestones [3,2]",
            r"milestones \[3, 2\]: must be ascending",
        ),
        ("--optim.milestones [3]", r"milestones \[3\]: need --optim\.schedule step"),
        ("--data.randaugment_magnitude 31", r"randaugment_magnitude 31: .* 0 and 30"),
        ("--data.max_broken 2", r"max_broken 2\.0: .* 0 and 1"),
        ("--data.label_key worse", r"label_key worse: .* --data\.label_file; pass"),
        ("--noise.kind matrix", r"--noise\.matrix FILE: pass both or neither"),
        ("--noise.matrix x.npy", r"--noise\.matrix FILE: pass both or neither"),
        ("--recipe digits --data-root /tmp", r"--data-root /tmp: recipe digits brings its own"),
        ("--data-root x --noise.rate 0.4", r"--noise\.rate 0\.4: .* --noise\.kind symmetric"),
        ("--config /no/such.yaml", "/no/such.yaml: No such file"),
        ("--profile stray", r"--log\.profile stray: must be true or false"),
        ("--profile=", "--profile: the value is empty"),
        ("stray", "stray"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(argv, message):
    with pytest.raises(UserError, match=message) as error:
        parse(argv.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epocs: 3}", r"--optim\.epocs: no such option; did you mean --optim\.epochs\?"),
        ("optin: {epochs: 3}", r"--optin\.epochs: no such option; did you mean --optim\.epochs\?"),
        ("optim: [3", "not valid YAML"),
        ("3", "name: value"),
        ("optim: {epochs: many}", r"--optim\.epochs many: must be an integer"),
    ],
)
def test_wrong_config_file(tmp_path, text, message):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        parse(["--config", str(file)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(epochs=0), r"--optim\.epochs 0: must be 1 or more"),
        (lambda: OptimConfig(milestones=[3]), r"milestones \[3\]: need --optim\.schedule step"),
        (lambda: DataConfig(limit=0), r"--data\.limit 0: must be 1 or more"),
        (lambda: NoiseConfig(rate=2.0), r"rate 2\.0: must lie between 0 and 1"),
        (lambda: Config(seed=-1), r"--seed -1: must be 0 or more"),
        (lambda: Config(data_root="x"), r"--data-root x: recipe digits brings its own"),
    ],
)
def test_wrong_values_are_refused_without_the_command_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_warm_up_is_free_without_alr():
    assert parse(["--methods", "ce", "--optim.epochs", "1"]).optim.epochs == 1


def test_no_noise_has_no_rate():
    assert parse(["--noise.kind", "none"]).noise.rate == 0.0


# Paths.

# Text options that are not paths. A new option that names a file or folder gets the type PathText.
TEXTS = [
    "seeds",
    "data.name",
    "data.balance",
    "data.column",
    "data.columns",
    "data.train_split",
    "data.test_split",
    "data.label_key",
    "data.loader",
    "data.crop",
    "noise.kind",
    "model.name",
    "model.compile",
    "optim.optimizer",
    "optim.schedule",
    "bank.dtype",
    "bank.placement",
    "log.show",
    "log.to",
    "log.wandb_project",
    "recipe",
    "methods",
    "device",
    "precision",
]
PATHS = [
    "data_root",
    "runs",
    "resume",
    "warm_start",
    "plugins",
    "data.images",
    "data.ilsvrc12",
    "data.label_file",
    "data.marks",
    "data.exclude",
    "noise.matrix",
    "transition.source",
    "transition.net",
    "bank.folder",
]


def text_options(cls=Config, prefix=""):
    """The options of the schema that take texts, and whether they are marked as paths."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        default = getattr(cls(), name)
        if is_dataclass(default):
            yield from text_options(type(default), f"{prefix}{name}.")
        elif name not in ("options", "asked") and re.search(r"\bstr\b|Literal", str(hint)):
            yield prefix + name, "NamesPath" in str(hint)


def test_every_text_of_the_schema_is_known_to_be_a_path_or_not():
    marked = dict(text_options())
    assert sorted(name for name, is_path in marked.items() if is_path) == sorted(PATHS)
    assert sorted(name for name, is_path in marked.items() if not is_path) == sorted(TEXTS)


def value_of(config, option):
    """An option by its full name."""
    *group, name = option.split(".")
    if not group:
        return getattr(config, name)
    own = config.options.get(group[0]) or getattr(config, group[0])
    return getattr(own, name)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder and $DATA, with a file of each kind; the working directory is another one."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("file.csv", "ce.safetensors"):
        (home / name).write_text("1,0\n0,1\n")
    (home / "plugin.py").write_text("")
    (home / "options.yaml").write_text("runs: ~/from-file\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DATA", str(home))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


NEEDED = {  # other options with which an option can be given
    "data.ilsvrc12": ["--recipe", "webvision", "--data-root", "~"],
    "data.label_file": ["--noise.kind", "none"],
    "noise.matrix": ["--noise.kind", "matrix"],
    "transition.source": ["--methods", "forward_correction"],
    "transition.net": ["--methods", "forward_correction", "--transition.source", "anchor"],
    "distillation.teacher": ["--methods", "distillation"],
}


@pytest.mark.parametrize("start", ["~", "$DATA", "${DATA}"])
@pytest.mark.parametrize("option", [*PATHS, "distillation.teacher"])
def test_home_and_variables_are_expanded_in_every_path(home, option, start):
    name = {
        "plugins": "plugin.py",
        "transition.net": "ce.safetensors",
        "distillation.teacher": "ce.safetensors",
    }.get(option, "file.csv")
    config = parse([*NEEDED.get(option, []), f"--{option}", f"{start}/{name}"])
    expected = str(home / name)
    assert value_of(config, option) == ([expected] if option == "plugins" else expected)


@pytest.mark.parametrize("option", [*PATHS, "distillation.teacher", "config", "data-root"])
def test_a_variable_that_is_not_set_is_named_with_its_option(home, option):
    with pytest.raises(UserError) as caught:
        parse([*NEEDED.get(option, []), f"--{option}", "$NOWHERE/file.csv"])
    name = option.replace("-", "_")
    assert str(caught.value).startswith(f"--{name} $NOWHERE/file.csv: the variable NOWHERE is not")


def test_home_is_expanded_in_files_of_options_and_their_names(home):
    assert parse(["--config", "~/options.yaml"]).runs == str(home / "from-file")


def test_roots_and_files_are_stored_as_absolute_paths(home, monkeypatch):
    monkeypatch.chdir(home)
    config = parse(["--data-root", ".", "--labels", "file.csv", "--data.exclude", "auto"])
    assert (config.data_root, config.data.label_file) == (str(home), str(home / "file.csv"))
    assert (config.data.exclude, config.runs) == ("auto", str(home / "runs"))
    (home / "auto").touch()  # words remain words beside files of the same name
    (home / "ce").touch()
    config = parse(["--data.exclude", "auto", "--transition.net", "ce"])
    assert (config.data.exclude, config.transition.net) == ("auto", "ce")
