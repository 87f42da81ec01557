"""The run and the checkpoint that `--resume` finds, without training."""

import shutil

import pytest
import torch
import torch.distributed as dist
import yaml

from alr_fast.errors import UserError
from alr_fast.training.checkpoint.manifest import MANIFEST
from alr_fast.training.checkpoint.store import CheckpointStore
from alr_fast.training.config.command_line import parse
from alr_fast.training.output.run_folder import RunFolder, read_config
from alr_fast.training.resume import Start, find_checkpoint
from alr_fast.training.run_paths import CHECKPOINTS


@pytest.fixture(scope="module", autouse=True)
def _group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a checkpoint with the number 1."""
    store = CheckpointStore(tmp_path_factory.mktemp("made"), keep=1, log=print)
    store.save(1, {"x": torch.ones(1)}, {}, wait=True)
    store.close()
    return store.folder / "000000001"


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def make_run(runs, checkpoint):
    """Makes the folder of a stopped or finished run."""

    def make(name, *argv, finished=False, checkpoints=True, change=lambda options: None, size=None):
        """With ``size`` as this version writes it, else as earlier ones did, all resolved."""
        run = runs / name
        (run / CHECKPOINTS).mkdir(parents=True)
        config = parse(["--runs", str(runs), *argv])
        options = config.as_dict()
        if size is not None:
            made = RunFolder.create(config.with_value("data.image_size", size))
            made.close()
            options = read_config(made.path, asked=True)
            shutil.move(made.path / "resolved.yaml", run)
            shutil.rmtree(made.path)
        change(options)
        (run / "config.yaml").write_text(yaml.safe_dump(options))
        if checkpoints:
            shutil.copytree(checkpoint, run / CHECKPOINTS / checkpoint.name)
        if finished:
            (run / "summary.json").write_text("{}")
        return run

    return make


@pytest.fixture
def logged():
    return []


@pytest.fixture
def warned():
    return []


@pytest.fixture
def find(runs, logged, warned):
    def find(resume, *argv):
        config = parse(["--runs", str(runs), "--resume", str(resume), *argv])
        return find_checkpoint(config, log=logged.append, warn=warned.append)

    return find


FIRST, SECOND, THIRD = (f"20260131-00000{number}-digits" for number in (1, 2, 3))
BEGINS = "--resume auto: no unfinished run of this configuration in {}; a new one begins"


def test_links_are_resolved(runs, make_run, find):
    run = make_run(FIRST)
    (runs / "latest").symlink_to(run.name)
    # Otherwise "latest" would be linked to itself when the run has finished.
    for path in (runs / "latest", runs / "latest" / CHECKPOINTS / "000000001"):
        start = find(path)
        assert start.folder == run
        assert start.checkpoint.path == run / CHECKPOINTS / "000000001"
        assert not start.finished


def test_a_finished_run_is_not_resumed(make_run, find):
    run = make_run(FIRST, finished=True)
    path = run / CHECKPOINTS / "000000001"
    assert find(run) == find(path) == find("auto") == Start(run, None)
    assert find(run).finished
    (path / MANIFEST).write_text("damaged")
    assert find(run) == find(path) == Start(run, None)
    shutil.rmtree(run / CHECKPOINTS)
    assert find(run) == Start(run, None)
    with pytest.raises(UserError, match=r"--seed 3: the run .* has 0; pass that"):
        find(run, "--seed", "3")


def test_a_run_without_a_checkpoint_is_refused(make_run, find):
    run = make_run(FIRST, checkpoints=False)
    for _ in range(2):
        with pytest.raises(UserError, match=f"--resume {run}: has no complete checkpoint"):
            find(run)
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)


def test_a_folder_without_a_run_is_refused(runs, make_run, find):
    run = make_run(FIRST)
    for path in (runs, run / CHECKPOINTS):
        with pytest.raises(UserError, match=f"{path}: neither the folder of a run nor one of its"):
            find(path)
    with pytest.raises(UserError, match="no such folder"):
        find(runs / "none")


def test_a_configuration_that_cannot_be_read_is_refused(make_run, find):
    run = make_run(FIRST)
    (run / "config.yaml").write_text("seed: [3")
    with pytest.raises(UserError, match=rf"{run}/config\.yaml: cannot be read .*--resume") as error:
        find(run)
    assert "\n" not in str(error.value)


def test_auto_takes_the_newest_run_of_this_configuration(make_run, find, logged, warned):
    make_run(FIRST)
    run = make_run(SECOND)
    make_run(THIRD, "--seed", "1")
    assert find("auto", "--log-every", "7").folder == run
    assert (logged, warned) == ([], [])


@pytest.mark.parametrize("text", ["seed: [3", "", "- 3", b"\xff\xfe\xff"])
def test_auto_passes_over_a_configuration_that_cannot_be_read(make_run, find, warned, text):
    run, other = make_run(FIRST), make_run(SECOND)
    path = other / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert find("auto").folder == run
    (line,) = warned
    assert line.startswith(f"{path}: cannot be read (")
    assert line.endswith("): --resume auto passes this run over")
    assert "\n" not in line


def test_auto_logs_that_a_new_run_begins(runs, find, logged):
    assert find("auto") == Start()
    assert logged == [BEGINS.format(runs)]


def test_auto_logs_the_difference_in_the_newest_run_of_the_recipe(runs, make_run, find, logged):
    make_run(FIRST, "--seed", "9")
    make_run(SECOND, "--optim.lr", "0.1")
    make_run(THIRD, "--recipe", "folder", "--data-root", "x")
    assert find("auto") == Start()
    assert logged == [f"{BEGINS.format(runs)} ({SECOND} differs in optim.lr: 0.1, now 0.01)"]


def test_auto_names_three_options_at_most(runs, make_run, find, logged):
    make_run(FIRST, "--seed", "1", "--noise.seed", "0", "--optim.lr", "0.1", "--data.limit", "50")
    assert find("auto", "--optim.nesterov", "false") == Start()
    names = "data.limit: 50, now null; optim.lr: 0.1, now 0.01; optim.nesterov: true, now false"
    assert logged == [f"{BEGINS.format(runs)} ({FIRST} differs in {names}; and 1 more)"]


def test_other_methods_are_named_as_such(make_run, find):
    run = make_run(FIRST, "--methods", "ce,alr")  # "alr.momentum" sorts before "methods"
    with pytest.raises(UserError, match=r"--methods \['ce'\]: the run .* has \['ce', 'alr'\]"):
        find(run, "--methods", "ce")


def test_changed_options_are_named_before_those_that_depend_on_them(make_run, find, logged):
    run = make_run(FIRST)
    with pytest.raises(UserError, match=r"--optim\.epochs 90: the run .* has 60"):
        find(run, "--optim.epochs", "90")
    assert find("auto", "--optim.epochs", "90") == Start()
    assert "optim.epochs: 60, now 90; alr.warmup_epochs: 10, now 15" in logged[0]


def test_values_that_follow_from_others_are_those_of_the_run(make_run, find, logged):
    run = make_run(FIRST, size=40)
    start = find(run)
    assert (start.folder, start.image_size) == (run, 40)
    assert find(run, "--data.image_size", "40", "--noise.seed", "0").folder == run
    assert find("auto", "--optim.epochs", "90") == Start()
    assert logged[-1].endswith(f"({FIRST} differs in optim.epochs: 60, now 90)")
    for option, value, then in (("data.image_size", 32, 40), ("alr.warmup_epochs", 5, 10)):
        with pytest.raises(UserError, match=rf"--{option} {value}: the run .* has {then}; pass"):
            find(run, f"--{option}", str(value))


def test_auto_logs_that_there_is_no_checkpoint_yet(runs, make_run, find, logged):
    make_run(FIRST, checkpoints=False)
    assert find("auto") == Start()
    assert logged == [f"{BEGINS.format(runs)} ({FIRST} has no complete checkpoint)"]


def test_an_option_that_did_not_exist_had_its_default(make_run, find):
    def forget(options):
        del options["optim"]["clip_norm"], options["optim"]["accumulate"], options["bank"]

    run = make_run(FIRST, change=forget)
    assert find("auto").folder == find(run).folder == run
    with pytest.raises(UserError, match=r"--optim\.accumulate 2: the run .* has 1; pass that"):
        find(run, "--optim.accumulate", "2")
    with pytest.raises(UserError, match=r"--bank\.dtype bfloat16: the run .* has float32"):
        find(run, "--bank.dtype", "bfloat16")


@pytest.mark.parametrize("value", [None, 3])
def test_an_option_that_no_longer_exists_differs(make_run, find, logged, value):
    run = make_run(FIRST, change=lambda options: options["optim"].update(magic=value))
    assert find("auto") == Start()
    then = "null" if value is None else "3"
    assert logged[0].endswith(f"({FIRST} differs in optim.magic: {then}, now no such option)")
    with pytest.raises(UserError, match=r"has the option optim\.magic, which this version"):
        find(run)


LABELS = [
    ["--data.label_file", "corrected.npz"],
    ["--noise.kind", "none"],
    ["--noise.rate", "0.2", "--noise.seed", "5"],
]


@pytest.mark.parametrize("changed", LABELS)
def test_other_labels_may_have_another_source(make_run, find, changed):
    run = make_run(FIRST)
    assert find("auto", *changed) == Start()
    with pytest.raises(UserError, match=f"{changed[0]} .*the run"):
        find(run, *changed)
    wanted = ["--checkpoint.other_labels", "true"]
    assert find("auto", *changed, *wanted).folder == find(run, *changed, *wanted).folder == run
    assert find("auto", *changed, *wanted, "--data.limit", "9") == Start()


def test_paths_were_relative_in_runs_of_earlier_versions(make_run, find, tmp_path, monkeypatch):
    (tmp_path / "matrix.csv").write_text("1,0\n0,1\n")
    monkeypatch.chdir(tmp_path)
    noise = ["--noise.kind", "matrix", "--noise.matrix", "matrix.csv"]
    run = make_run(
        FIRST, *noise, change=lambda options: options["noise"].update(matrix="matrix.csv")
    )
    assert find(run, *noise).folder == run
    (tmp_path / "other.csv").touch()
    with pytest.raises(
        UserError, match=r"--noise.matrix .*/other.csv: the run .* has .*/matrix.csv"
    ):
        find(run, "--noise.kind", "matrix", "--noise.matrix", "other.csv")
