"""Nothing of the user is overwritten: every file is written by `alr_fast.utils.files`."""

import ast
import os
import shutil
from pathlib import Path

import pytest

from alr_fast import export, report, train
from alr_fast.data.__main__ import main as data
from helpers.image_folder import write_folder

ROOT = Path(__file__).parents[2]
FILES = "alr_fast/utils/files.py"

# Functions that write where nothing can be in the way, or through `replacing` of their caller.
ALLOWED = {
    ("alr_fast/bank/placement.py", "_unlinked_file"): "a new file of tempfile",
    ("alr_fast/data/cache.py", "_write"): "into a new folder",
    ("alr_fast/utils/streams.py", "_lasting"): "os.devnull",
    ("alr_fast/data/packing/shards.py", "__init__"): "a temporary file that `close` removes",
    ("alr_fast/training/checkpoint/manifest.py", "write_manifest"): "a new file, mode x",
    ("alr_fast/data/tables/writing.py", "_write_csv"): "the caller replaces",
    ("alr_fast/data/tables/writing.py", "_write_parquet"): "the caller replaces",
    ("benchmarks/harness/results.py", "_new_path"): "a new file",
    ("benchmarks/loading/work.py", "write_images"): "into a new folder of tempfile",
    ("benchmarks/loading/index_cost.py", "write_webvision"): "into a new folder of tempfile",
    ("benchmarks/loading/index_cost.py", "_forget_peak"): "a file of /proc",
    ("benchmarks/scaling/bank_phases.py", "_write"): "into a new folder of tempfile",
}
_WRITERS = {
    "write_text", "write_bytes", "savez", "savez_compressed", "save", "savetxt", "savefig",
    "save_file", "to_csv", "to_parquet", "open_memmap", "write_table", "ParquetWriter", "mkstemp",
    "symlink_to", "touch", "export_chrome_trace", "dump",
}  # fmt: skip
_OWN = {"write_text", "write_bytes", "write_json"}  # of utils.files


def _mode(call):
    """The mode of a call of open, as far as it is written."""
    values = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    texts = [value.value for value in values if isinstance(value, ast.Constant)]
    return next((t for t in texts if isinstance(t, str) and set(t) <= set("rwaxbt+U")), "r")


def _root(node):
    """The name that an expression like ``name.path / "x"`` begins with."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.BinOp):
            node = node.left
        elif isinstance(node, ast.Call) and node.args:
            node = node.args[0]
        else:
            return None
    return node.id


def _writes(function, own):
    """Calls in a function that write a file whose path is not from `replacing`."""
    fresh = set()
    for node in ast.walk(function):
        if isinstance(node, ast.With):
            for item in node.items:
                call, name = item.context_expr, item.optional_vars
                if isinstance(call, ast.Call) and isinstance(name, ast.Name):
                    maker = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
                    # Files opened from a fresh path count, too.
                    if maker in ("replacing", "temporary", "NamedTemporaryFile") or (
                        {_root(a) for a in [call.func, *call.args]} & fresh
                    ):
                        fresh.add(name.id)
    for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", None))
        opened = name == "open" and set(_mode(call)) & set("wa+")
        if name == "save" and _root(call.func) not in ("np", "torch"):
            continue
        if not opened and (
            name not in _WRITERS or (isinstance(call.func, ast.Name) and name in own)
        ):
            continue
        if not {_root(part) for part in [call.func, *call.args]} & fresh:
            yield call.lineno, name


def _functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("package", ["alr_fast", "benchmarks"])
def test_files_are_written_by_one_writer(package):
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name == FILES:
            continue
        tree = ast.parse(path.read_text())
        own = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "alr_fast.utils.files"
            for alias in node.names
        } & _OWN
        for function in _functions(tree):
            if (name, function.name) not in ALLOWED:
                found += [f"{name}:{line}: {call}" for line, call in _writes(function, own)]
    assert found == []


def test_the_search_finds_writers():
    source = """
def f(path):
    path.write_text("x")
    open(path, "w")
    path.open("ab")
    open(path, mode="r+b")
    np.save(path, array)
    with replacing(path) as fresh, fresh.open("w") as file:
        np.savez(file)
        fresh.write_text("x")
    open(path)
    path.open("rb")
"""
    (function,) = _functions(ast.parse(source))
    assert [line for line, _ in _writes(function, set())] == [3, 4, 5, 6, 7]


# What a system may refuse, and the files that know how to go on without it.
SYSTEM = ("alr_fast/utils/system.py",)
REFUSABLE = {
    **{name: (*SYSTEM, FILES) for name in ("flock", "lockf")},  # passed on to `try_lock`
    **{name: SYSTEM for name in ("symlink", "symlink_to", "hardlink_to", "link")},
    **{name: SYSTEM for name in ("fchmod", "chmod", "fsync", "posix_fallocate")},
    **{name: SYSTEM for name in ("home", "getuser", "getpwuid", "fork")},
    # of os.path, which leaves what it cannot expand
    "expanduser": (
        *SYSTEM,
        *("alr_fast/data/cache.py", "alr_fast/data/paths.py", "alr_fast/data/layouts/places.py"),
    ),
    # not in a thread
    "signal": (
        *("alr_fast/training/signals.py", "alr_fast/data/loaders/torch.py", "alr_fast/review.py"),
    ),
    "sched_getaffinity": ("alr_fast/utils/machine.py",),
}


def _refusable(tree):
    """Names of attributes, called or passed on, that a system may refuse."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in REFUSABLE:
            module = node.value.id if isinstance(node.value, ast.Name) else ""
            if module in {"home": ("Path",), "link": ("os",)}.get(node.attr, (module,)):
                yield node.lineno, node.attr


def test_what_a_system_may_refuse_is_called_where_that_is_known():
    found = []
    for path in sorted((ROOT / "alr_fast").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for line, call in _refusable(ast.parse(path.read_text())):
            if name not in REFUSABLE[call]:
                found.append(f"{name}:{line}: {call}")
    assert found == []


def test_the_search_finds_what_a_system_may_refuse():
    source = "os.symlink(a, b)\nPath.home()\ncall(fcntl.flock)\nself.home()\nrun.link()\n"
    assert list(_refusable(ast.parse(source))) == [(1, "symlink"), (2, "home"), (3, "flock")]


# Links at the names that commands write


OPTIONS = ["--data.limit", "100", "--data.test_limit", "20", "--optim.epochs", "1", "--methods"]
OPTIONS += ["alr", "--alr.warmup_epochs", "0", "--log.show", "quiet", "--log.to", "csv,tensorboard"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert train.main([*OPTIONS, "--runs", str(folder), "--checkpoint.steps", "1"]) == 0
    return (folder / "latest").resolve()


@pytest.fixture
def run(finished, tmp_path):
    copy = tmp_path / "runs" / finished.name
    shutil.copytree(finished, copy)
    return copy


@pytest.fixture
def precious(tmp_path):
    """A file of the user that links point to."""
    path = tmp_path / "precious"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"
    assert path.stat().st_nlink == 1


def planted(folder, precious, *names):
    for name in names:
        path = folder / name
        if path.exists():
            path.unlink()
        path.symlink_to(precious)


def test_export_follows_no_links(run, precious):
    planted(run, precious, ".labels.parquet.tmp", "labels.parquet", ".labels.csv.tmp", "labels.csv")
    assert export.main([str(run)]) == 0
    assert export.main([str(run), "--csv"]) == 0
    assert not (run / "labels.parquet").is_symlink()
    assert not (run / "labels.csv").is_symlink()


def test_report_follows_no_links(run, precious):
    planted(run, precious, ".report.html.tmp", "report.html")
    assert report.main([str(run)]) == 0
    assert not (run / "report.html").is_symlink()


@pytest.mark.parametrize(
    "name",
    [".lock", "metrics.csv", "metrics.png", "summary.json", "alr.safetensors",
     "alr_bank.safetensors", "samples.safetensors", "tensorboard", "tensorboard/alr",
     "checkpoints", "broken.csv", ".metrics.csv.tmp", ".summary.json.tmp"],
)  # fmt: skip
def test_a_resumed_run_follows_no_links(run, precious, tmp_path, capsys, name):
    (run / "summary.json").unlink()
    for path in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    target = precious
    if (run / name).is_dir():
        target = tmp_path / "elsewhere"
        (run / name).rename(target)
    elif (run / name).exists():
        (run / name).unlink()
    before = {path: path.read_bytes() for path in tmp_path.glob("elsewhere/**/*") if path.is_file()}
    (run / name).symlink_to(target)
    status = train.main([*OPTIONS, "--runs", str(run.parent), "--resume", str(run)])
    error = capsys.readouterr().err
    if status:
        assert status == 2 and error.count("\n") == 1, error
        assert f"{run / name}: is a symbolic link" in error
    after = {path: path.read_bytes() for path in tmp_path.glob("elsewhere/**/*") if path.is_file()}
    assert after == before


def test_packing_follows_no_links(tmp_path, precious):
    root = write_folder(tmp_path / "set", train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    out = tmp_path / "out"
    argv = ["pack", str(root), str(out), "--workers", "1"]
    assert data(argv) == 0
    for path in list(out.rglob("*.tar")) + list(out.rglob("*.idx")) + list(out.rglob("*.npy")):
        path.unlink()
        path.symlink_to(precious)
    planted(out, precious, "train-000000.tar.part", "index/lock", ".packed.json.tmp")
    assert data(argv) == 2
    (out / "index" / "lock").unlink()
    assert data(argv) == 0
    assert [path for path in out.rglob("*.tar") if path.is_symlink()] == []


def test_the_link_to_the_last_run_replaces_no_file(tmp_path, capsys):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "latest").write_text("mine")
    assert train.main([*OPTIONS, "--runs", str(runs)]) == 2
    assert "must be free for the link" in capsys.readouterr().err
    assert (runs / "latest").read_text() == "mine"
    assert os.listdir(runs) == ["latest"]
