"""What is not installed, or hidden by a source folder, is named in one line with its remedy."""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import alr_fast
from alr_fast.__main__ import COMMANDS
from alr_fast.utils import requirements
from alr_fast.utils.requirements import extra_of, install_command
from helpers.image_folder import write_folder

PACKAGE = Path(alr_fast.__file__).parent
INTERPRETER = shlex.quote(sys.executable)

# Runs commands without some packages, in one process; prints a list of [status, errors].
WITHOUT = """
import contextlib, importlib.machinery, io, json, sys
blocked, calls = json.loads(sys.argv[1]), json.loads(sys.argv[2])
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, *args: None if name.partition(".")[0] in blocked else find(name, *args)
)
from alr_fast.__main__ import COMMANDS, main
results = []
for call in calls:
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(None):
        results.append([main(call), errors.getvalue()])
print(json.dumps(results))
"""


def without(blocked, calls):
    words = [sys.executable, "-c", WITHOUT, json.dumps(blocked), json.dumps(calls)]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(
        write_folder(tmp_path_factory.mktemp("a") / "set", train={"a": 2, "b": 2}, test={"a": 1})
    )


def test_each_command_names_what_is_not_installed(images, tmp_path):
    out = str(tmp_path / "out.npz")
    noise = ["noise", "--rate", "0.1", "--output", out, "--kind"]
    calls = {
        "train": ["train"],
        "export": ["export", images],
        "report": ["report", images],
        "review": ["review", images],
        "predict": ["predict", images, images],
        "data verify": ["data", "verify", images],
        "data pack": ["data", "pack", images, out],
        "noise of digits": [*noise, "pair", "--data", "digits"],
        "noise of images": [*noise, "instance", "--data-root", images],
        "data of a list": ["noise", "--data-root", str(tmp_path / "list.csv"), *noise[1:], "pair"],
    }
    (tmp_path / "list.csv").write_text("path,label\na.png,a\n")
    blocked = ["PIL", "pyarrow", "rich", "simplejpeg", "sklearn", "yaml", "jsonargparse"]
    for name, (status, errors) in zip(calls, without(blocked, list(calls.values())), strict=True):
        assert status == 2, name
        assert errors.startswith("error: ") and errors.count("\n") == 1, (name, errors)
        assert f"{INTERPRETER} -m pip install " in errors, (name, errors)
        assert "alr_fast[" not in errors
    assert not (tmp_path / "out.npz").exists()


def test_images_that_nothing_can_decode_are_not_broken(images):
    ((status, errors),) = without(["PIL"], [["data", "verify", images, "--again"]])
    assert (status, errors.split(":")[1]) == (2, " PIL is not installed")


def test_the_commands_begin_without_any_extra():
    """Modules that a command imports before its parser, for `python -m alr_fast.NAME`."""
    names = ["--help"]
    calls = [[name, *names] for name in COMMANDS if name != "train"]
    blocked = ["PIL", "pyarrow", "rich", "simplejpeg", "sklearn", "yaml", "jsonargparse"]
    code = WITHOUT.replace("results.append([main(call), errors.getvalue()])", "run(call)").replace(
        "results = []",
        """
results = []
def run(call):
    try:
        main(call)
    except SystemExit as end:
        results.append([end.code or 0, ""])
""",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(blocked), json.dumps(calls)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0, ""]] * len(calls)


def test_the_command_names_the_versions_that_are_needed():
    words = shlex.split(install_command(["PIL", "docstring_parser", "yaml"], "train"))
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    names = [word.split(">=") for word in words[4:]]
    assert [name for name, _ in names] == ["pillow", "jsonargparse[signatures]", "pyyaml"]
    assert install_command(["pandas"]) == f"{INTERPRETER} -m pip install pandas"


def version_without_pip(package):
    if package == "pip":
        raise PackageNotFoundError(package)
    return "1"


def test_an_advice_changes_nothing_of_this_process():
    """Looking for pip as a module made setuptools restore the distutils of Python."""
    code = "import setuptools\nfrom alr_fast.utils.requirements import install_command\n"
    code += "install_command(['rich'])\nimport _distutils_hack\n"
    code += "_distutils_hack.ensure_local_distutils()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_environment_of_uv_has_no_pip(monkeypatch, tmp_path):
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(requirements, "version", version_without_pip)
    assert install_command(["rich"]).startswith(f"uv pip install --python {INTERPRETER} 'rich>=")


def test_every_imported_package_is_one_of_an_extra():
    """Otherwise its absence would be a traceback."""
    known = {"torch", "numpy", "alr_fast", *sys.stdlib_module_names}
    # Checked where they are imported, with a message of their own; nvidia: by its loader.
    known |= {"lightning", "nvidia", "pandas", "pytorch_lightning", "transformers", "scipy"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    assert {name for name in found - known if extra_of(name) is None} == set()


@pytest.fixture
def source(tmp_path):
    """A source folder that is not compiled."""
    folder = tmp_path / "clone"
    shutil.copytree(PACKAGE, folder / "alr_fast", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    return folder


def in_source(source, *words, **environment):
    """Runs this Python in the folder, where `alr_fast` is found first."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=source,
        capture_output=True,
        text=True,
        env={**clean, **environment},
    )


def test_a_source_folder_that_hides_the_installed_package_is_named(source, tmp_path):
    site = tmp_path / "site"
    (site / "alr_fast").mkdir(parents=True)
    (site / "alr_fast" / "__init__.py").write_text("")
    (site / "alr_fast" / "_ops.so").write_text("")
    done = in_source(source, "-m", "alr_fast", "info", PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: ") and done.stderr.count("\n") == 1
    assert f"is missing in {source}/alr_fast, a source folder that hides" in done.stderr
    assert f"installed in {site}/alr_fast; run in another folder (or without PYTH" in done.stderr


@pytest.mark.parametrize("words", [["--version"], ["--help"], [".data", "--help"]])
def test_commands_that_compute_no_loss_say_nothing_of_a_missing_library(source, words):
    module = "alr_fast" + (words.pop(0) if words[0].startswith(".") else "")
    done = in_source(source, "-m", module, *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_source_folder_that_is_not_compiled_says_how(source):
    (source / "csrc").mkdir()
    (source / "setup.py").write_text("")
    done = in_source(source, "-m", "alr_fast", "info")
    assert done.returncode == 0
    assert f"its compiled library is missing in {source}/alr_fast; compile it" in done.stderr
    assert "`ALR_FAST_NATIVE=1 " in done.stderr
    assert f"install --no-build-isolation --no-deps --editable {source}`" in done.stderr


def test_the_lazy_names_are_those_of_the_modules():
    from alr_fast.bank import LabelBank
    from alr_fast.losses import ALRLoss

    assert (alr_fast.LabelBank, alr_fast.ALRLoss) == (LabelBank, ALRLoss)
    assert alr_fast.functional.__name__ == "alr_fast.functional"
    assert {*alr_fast.__all__, "functional", "reference"} <= set(dir(alr_fast))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = alr_fast.nothing
