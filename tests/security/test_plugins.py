"""Programs in the options of somebody else's run do not run."""

import shutil

import pytest
import yaml

from alr_fast import export, report, train
from alr_fast.errors import UserError
from alr_fast.training.config.command_line import parse
from alr_fast.training.methods import METHODS
from alr_fast.training.output.run_folder import read_config
from alr_fast.training.run_paths import CONFIG

OPTIONS = ["--data.limit", "100", "--data.test_limit", "20", "--optim.epochs", "1"]
OPTIONS += ["--log.show", "quiet", "--log.to", "csv", "--checkpoint.steps", "1"]
PLUGIN = """
import pathlib
pathlib.Path(__file__).with_name("victim").mkdir(exist_ok=True)
from alr_fast.losses import Loss
from alr_fast.losses.alr import ALRLoss
from alr_fast.training.methods import method

@method("foreign")
class Foreign(ALRLoss):
    pass
"""


@pytest.fixture(scope="module", autouse=True)
def no_plugins():
    """Removes the methods that these tests add."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "foreign_plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def victim(plugin):
    path = plugin.with_name("victim")
    if path.exists():
        path.rmdir()
    return path


@pytest.fixture(scope="module")
def finished(plugin, tmp_path_factory):
    """A run of the method of a plugin, with the plugin in its config.yaml."""
    folder = tmp_path_factory.mktemp("runs")
    argv = ["--plugins", str(plugin), "--methods", "foreign", "--runs", str(folder)]
    assert train.main([*OPTIONS, *argv, "--noise.seed", "0"]) == 0
    return (folder / "latest").resolve()


@pytest.fixture
def run(finished, tmp_path):
    copy = tmp_path / "runs" / finished.name
    shutil.copytree(finished, copy)
    return copy


def unfinished(run):
    (run / "summary.json").unlink()
    (run / "foreign_bank.safetensors").unlink()
    *older, _ = sorted((run / "checkpoints").iterdir())
    for path in older:
        shutil.rmtree(path)


@pytest.mark.parametrize("prepare", [lambda run: None, unfinished])
@pytest.mark.parametrize("main", [export.main, report.main])
def test_a_run_that_is_exported_or_reported_imports_nothing(run, victim, plugin, main, prepare):
    prepare(run)
    assert str(plugin) in (run / CONFIG).read_text()
    assert main([str(run)]) == 0
    assert not victim.exists()


def test_a_resumed_run_imports_what_the_command_line_names(run, victim, plugin, capsys):
    unfinished(run)
    config = ["--config", str(run / CONFIG)]
    for argv in ([], [*OPTIONS, *config]):
        assert train.main([*argv, "--resume", str(run)]) == 2
        error = capsys.readouterr().err
        assert error == (
            f"error: --resume {run}: {run / CONFIG} names plugins, which are programs that would "
            f"run; name them yourself if you trust them: --plugins {plugin}\n"
        )
        assert not victim.exists()
    # What the message says.
    assert train.main(["--resume", str(run), "--plugins", str(plugin)]) == 0
    assert victim.exists()


@pytest.mark.parametrize("resume", [["--resume", "auto"], ["--resume=auto"], []])
def test_resume_in_the_file_itself_counts(tmp_path, victim, plugin, capsys, resume):
    config = tmp_path / "config.yaml"
    options = {"plugins": [str(plugin)], "methods": ["foreign"], "runs": str(tmp_path / "runs")}
    if not resume:
        options["resume"] = "auto"
    config.write_text(yaml.safe_dump(options))
    assert train.main(["--config", str(config), *resume]) == 2
    assert "name them yourself" in capsys.readouterr().err
    assert not victim.exists()


def test_a_resumed_run_does_not_take_its_plugins_from_the_run(run, victim, capsys):
    unfinished(run)
    for resume in (str(run), "auto"):
        argv = [*OPTIONS, "--runs", str(run.parent), "--resume", resume, "--noise.seed", "0"]
        assert train.main([*argv, "--methods", "ce"]) == (0 if resume == "auto" else 2)
    assert not victim.exists()


def test_the_file_of_the_user_is_his_own_wish(tmp_path, victim, plugin):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"plugins": str(plugin), "runs": str(tmp_path / "runs")}))
    argv = [*OPTIONS, "--config", str(config), "--methods", "foreign"]
    assert train.main(argv) == 0
    assert victim.exists()


@pytest.mark.parametrize("plugins", [{"a": 1}, 3, [1], [["x"]], True])
def test_plugins_of_another_type(tmp_path, capsys, plugins):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"plugins": plugins}))
    assert train.main(["--config", str(config)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


EVIL_YAML = {
    "a call": "methods: !!python/object/apply:os.mkdir [VICTIM]\n",
    "an object": "methods: !!python/object/new:os.mkdir [VICTIM]\n",
    "a module": "methods: !!python/module:os\n",
    "a class": "model: {class_path: os.mkdir, init_args: {path: VICTIM}}\n",
    "a class of an option": "methods: {class_path: os.mkdir, init_args: {path: VICTIM}}\n",
}


@pytest.mark.parametrize("text", EVIL_YAML.values(), ids=EVIL_YAML)
def test_no_file_of_options_makes_objects(run, tmp_path, capsys, text):
    victim = tmp_path / "made"
    text = text.replace("VICTIM", str(victim))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert train.main(["--config", str(config)]) == 2
    (run / CONFIG).write_text(text)
    commands = [lambda: export.main([str(run)]), lambda: report.main([str(run)])]
    commands.append(lambda: train.main(["--resume", str(run), "--runs", str(run.parent)]))
    for command in commands:
        capsys.readouterr()
        assert command() == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not victim.exists()


def test_no_file_of_options_reads_another(run, tmp_path):
    """The parser would read it, also a pipe, and leave its plugins and recipe out."""
    other, config = tmp_path / "other.yaml", tmp_path / "config.yaml"
    other.write_text("seed: 5\n")
    config.write_text(f"config: {other}\n")
    with (run / CONFIG).open("a") as file:
        file.write(f"config: {other}\n")
    for words in (["--config", str(config)], ["--resume", str(run), "--plugins", ""]):
        with pytest.raises(UserError, match="names another file of options"):
            parse(words)


def test_options_of_a_run_are_plain_values(finished):
    def plain(value):
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool)

    assert plain(read_config(finished))
