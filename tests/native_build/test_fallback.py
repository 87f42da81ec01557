"""The operators in plain PyTorch: as the native ones, tested by the same tests, chosen and said."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import torch

import alr_fast
from alr_fast import _installed, _loading
from alr_fast._fallback import operators as plain
from alr_fast._fallback.rounding import rounded_stochastically
from alr_fast._loading import LOADED
from alr_fast.errors import NativeLibraryError
from helpers.compare import same_bits
from helpers.problems import make_problem

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(alr_fast.__file__).parent
NATIVE = torch.ops.alr_fast
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NAN = float("nan")

needs_native = pytest.mark.skipif(LOADED.native is not None, reason="compares with the library")


def python(*words, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("ALR_FAST_NATIVE", "RANK")}
    return subprocess.run(
        [sys.executable, *words],
        env={**environment, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


# The tests of the operators, in a process that has no native ones.

# The rest, test_autograd.py and test_transforms.py, takes as long again.
QUICK = "backward_pass bad_input compile contract forward_backward given_labels memory properties"
QUICK_FILES = [f"tests/operators/test_{name}.py" for name in [*QUICK.split(), "range", "rounding"]]


def through_the_fallback(*words):
    call = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not native")
    done = python(*call, *words, ALR_FAST_NATIVE="0")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.mark.native
def test_the_tests_of_the_operators_pass_in_plain_pytorch():
    assert through_the_fallback(*QUICK_FILES, "-k", "not 3001") > 800


@pytest.mark.slow
@pytest.mark.native
def test_all_tests_of_operators_losses_and_bank_pass_in_plain_pytorch():
    assert through_the_fallback("tests/operators", "tests/losses", "tests/bank") > 2500


# Schemas and results are those of the native operators.


def test_the_schemas_are_those_of_the_native_operators():
    source = (ROOT / "csrc" / "ops.cpp").read_text()
    defined = {}
    for call in re.findall(r"m\.def\((.*?)\);", source, flags=re.DOTALL):
        text = "".join(re.findall(r'"(.*?)"', call))
        defined[text.partition("(")[0]] = text[text.index("(") :]
    assert defined == plain.SCHEMAS


def arguments(bank=F32, logits=F32, classes=37):
    """Of `alr_loss`, with all optional tensors; duplicates, ignored and broken rows, a mask."""
    problem = make_problem(40, classes, logits=logits, bank=bank, spread=3)
    z, table, index = problem.logits, problem.table, problem.index
    index[[3, 9, 20]] = index[1].clone()
    index[4] = -1
    z[5, 2], z[6], z[7, 1] = NAN, -torch.inf, -torch.inf
    labels = torch.arange(40) % classes
    labels[11] = -3
    given = torch.zeros(len(table), dtype=torch.int32)
    given[index.clamp(min=0)] = labels.int()
    labels[(index >= 0) & (labels >= 0)] = given[index.clamp(min=0)].long()[
        (index >= 0) & (labels >= 0)
    ]
    labels[given[index.clamp(min=0)] < 0] = -1
    weight = torch.linspace(0.5, 2, 40, dtype=F64 if logits == F64 else F32)
    status = torch.zeros(3, dtype=torch.int64)
    rounding = torch.tensor([7, 3])
    stats = torch.zeros(3, 40, dtype=torch.int64), torch.zeros(2, 40)
    return [z, table, index, labels, given, weight, status, rounding, *stats]


@needs_native
@pytest.mark.native
@pytest.mark.parametrize("grad_mode", [0, 1, 2])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("bank", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
def test_every_tensor_is_that_of_the_native_operator(logits, bank, reduction, grad_mode):
    options = (0.7, 0.3, reduction, False, grad_mode)
    theirs, ours = arguments(bank, logits), arguments(bank, logits)
    want = NATIVE.alr_loss(*theirs, *options)
    got = plain.alr_loss(*ours, *options)
    assert ours[6].tolist() == theirs[6].tolist()
    assert theirs[6][0] > 0  # rows that are not finite
    assert ours[7].tolist() == theirs[7].tolist() == [7, 4]
    assert torch.equal(ours[8], theirs[8])
    close = dict(rtol=3e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(ours[9], theirs[9], **close)
    unit = torch.finfo(logits).eps
    for a, b, rtol in zip(got, want, (3e-6, max(unit, 1e-5), 1e-6), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6, equal_nan=True)
    # The random bits are the same; only a number on an edge may go the other way.
    differs = ours[1] != theirs[1]
    if bank == F32:
        torch.testing.assert_close(ours[1], theirs[1], **close)
    else:
        assert differs.float().mean() < 0.01
        torch.testing.assert_close(ours[1], theirs[1], rtol=torch.finfo(bank).eps, atol=1e-7)


@needs_native
@pytest.mark.native
@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=str)
def test_scale_grad_has_the_bits_of_the_native_operator(dtype):
    rows = torch.randn(9, 33).to(dtype)
    acc = F64 if dtype == F64 else F32
    scale, weight = torch.tensor(0.3, dtype=acc), torch.rand(9, dtype=acc)
    for grad_output in (torch.tensor(1.7, dtype=acc), torch.randn(9, dtype=acc)):
        for optional in ((scale, weight), (None, None), (scale, None)):
            call = (rows, optional[0], grad_output, optional[1])
            want = NATIVE.scale_grad(*call)
            assert same_bits(plain.scale_grad(*call), want)
            for scale_grad_ in (plain.scale_grad_, NATIVE.scale_grad_):
                written = rows.clone()
                scale_grad_(written, *call[1:])
                assert same_bits(written, want)


# Devices that nothing waits for: the same code, which the CPU can run.


def test_without_raising_wrong_rows_are_nan_counted_and_stored_nowhere():
    tensors = arguments()
    _, table, index, labels, _, _, status, *_ = tensors
    index[12], index[13] = len(table), 2**40
    row = 14
    labels[row] = (labels[row] + 1) % 37
    before = table.clone()
    good = index.clone()
    loss, grad, _ = plain.alr_loss(*tensors, 0.7, 0.3, 0, False, 2, raises=False)
    assert loss[[12, 13, 14]].isnan().all() and grad[[12, 13, 14]].isnan().all()
    assert status[1] == 2 and status[2] == 1
    assert same_bits(table[good[row]], before[good[row]])
    assert loss.isfinite().sum() > 20
    stats = tensors[8]
    assert stats[:, 12].tolist() == [-1, -1, -1]
    assert stats[0, row] == -1 and stats[1, row] == before[good[row]].argmax()
    # Only rows of the batch are written, not the one that an ignored index stands for.
    untouched = torch.ones(len(table), dtype=torch.bool)
    untouched[good[(good >= 0) & (good < len(table))]] = False
    assert same_bits(table[untouched], before[untouched])
    mean = plain.alr_loss(*tensors, 0.7, 0.3, 1, False, 2, raises=False)[0]
    assert mean.isnan()


def test_without_raising_a_table_without_rows_and_a_batch_of_ignored_rows():
    z, nothing = torch.randn(3, 5), torch.empty(0, 5)
    loss, _, _ = plain.alr_loss(
        z, nothing, torch.tensor([0, -1, 4]), *(None,) * 7, 0.9, 0.4, 0, False, 2, raises=False
    )
    assert loss.isnan().tolist() == [True, False, True]
    bank = torch.rand(4, 5)
    before = bank.clone()
    loss, grad, _ = plain.alr_loss(
        z, bank, torch.full((3,), -1), *(None,) * 7, 0.9, 0.4, 1, False, 2, raises=False
    )
    assert loss == 0 and not grad.any() and same_bits(bank, before)


def test_without_raising_labels_beyond_the_classes_are_nan():
    status = torch.zeros(3, dtype=torch.int64)
    loss, grad, _ = plain.label_smoothing_cross_entropy(
        torch.randn(3, 5), torch.tensor([0, 5, -1]), None, None, None, status, 0.1, 0.0, 0, 2,
        raises=False,
    )  # fmt: skip
    assert loss.isnan().tolist() == [False, True, False]
    assert grad[1].isnan().all() and status.tolist() == [0, 1, 0]


def test_plain_operators_are_there_for_other_devices():
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in (*plain.SCHEMAS, "alr_loss_once"):
        for key in ("CPU", "CUDA", "MPS", "XPU"):
            assert has_kernel(f"alr_fast::{name}", key), (name, key)


# Which operators a process has, and what it says.

STEP = """
import torch, alr_fast
from alr_fast._loading import LOADED
bank = alr_fast.LabelBank.from_labels(torch.tensor([0, 1, 2]), num_classes=3)
criterion = alr_fast.ALRLoss(bank, warmup_epochs=0)
logits = torch.zeros(3, 3, requires_grad=True)
criterion(logits, torch.arange(3), torch.arange(3)).backward()
print(LOADED.native, logits.grad.isfinite().all().item())
"""


@pytest.fixture
def uncompiled(tmp_path):
    """A package without its library, as a build without a compiler leaves it."""
    folder = tmp_path / "site"
    shutil.copytree(
        PACKAGE, folder / "alr_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (folder / "alr_fast" / "_not_compiled.txt").write_text("no C++ compiler\nwas found\n")
    return folder


def in_folder(folder, *words, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("ALR_FAST_NATIVE", "RANK")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        text=True,
    )


def test_a_package_that_is_not_compiled_works_and_says_so_once(uncompiled):
    done = in_folder(uncompiled, "-W", "always", "-c", STEP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"
    assert done.stderr.count("FallbackWarning") == 1
    assert f"is missing in {uncompiled}/alr_fast (no C++ compiler was found)" in done.stderr
    assert "--no-build-isolation" in done.stderr and "ALR_FAST_NATIVE=0 turns" in done.stderr


def test_another_package_that_is_not_compiled_is_no_help(uncompiled, tmp_path):
    (tmp_path / "other" / "alr_fast").mkdir(parents=True)
    (tmp_path / "other" / "alr_fast" / "__init__.py").touch()
    code = "import alr_fast._installed as i; print(i.why_missing(), i.how_to_compile())"
    path = f"{uncompiled}{os.pathsep}{tmp_path / 'other'}"
    assert "hides" not in in_folder(uncompiled, "-c", code, PYTHONPATH=path).stdout
    (tmp_path / "other" / "alr_fast" / "_ops.so").touch()
    printed = in_folder(uncompiled, "-c", code, PYTHONPATH=path).stdout
    assert f"hides the package installed in {tmp_path / 'other' / 'alr_fast'} run in" in printed


def test_a_chosen_fallback_says_nothing(uncompiled):
    done = in_folder(uncompiled, "-W", "error", "-c", STEP, ALR_FAST_NATIVE="0")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    done = in_folder(uncompiled, "-W", "error", "-c", STEP)
    assert "alr_fast.errors.FallbackWarning" in done.stderr.splitlines()[-1]


def test_a_command_says_it_in_one_line(uncompiled):
    done = in_folder(uncompiled, "-m", "alr_fast", "info")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: alr_fast computes losses by plain PyTorch")
    assert done.stderr.count("\n") == 1
    assert re.search(r"compiled library: +not built \(is missing in .*no C\+\+", done.stdout)
    assert re.search(r"losses by: +plain PyTorch", done.stdout)


@pytest.mark.parametrize("words", [("-c", STEP), ("-m", "alr_fast", "info")])
def test_a_required_library_is_an_error(uncompiled, words):
    done = in_folder(uncompiled, *words, ALR_FAST_NATIVE="1")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == (1 if words[0] == "-c" else 2)
    assert "ALR_FAST_NATIVE=1, but its compiled library is missing in" in last
    assert last.startswith("error: " if words[0] == "-m" else "alr_fast.errors.NativeLibraryError")


@pytest.mark.parametrize("words", [("-c", STEP), ("-m", "alr_fast", "info")])
def test_another_value_of_the_variable_is_refused(words):
    done = python(*words, ALR_FAST_NATIVE="yes")
    assert done.returncode == (1 if words[0] == "-c" else 2)
    assert "ALR_FAST_NATIVE=yes: must be 0 (plain" in done.stderr.splitlines()[-1]


def test_a_library_of_another_system_is_not_fatal(uncompiled):
    (uncompiled / "alr_fast" / "_ops.so").write_bytes(b"MZ not of this system")
    done = in_folder(uncompiled, "-c", STEP)
    assert done.returncode == 0, done.stderr
    assert "its compiled library cannot be loaded (" in done.stderr
    # The words of the system, not only torch's "Could not load this library".
    assert re.search(r"_ops\.so: (file too short|invalid ELF header|.*not a mach-o)", done.stderr)
    assert done.stderr.count("FallbackWarning: ") == 1


def test_facts_of_another_build_are_not_taken_for_those_of_this_one(tmp_path):
    code = """
import sys, types
import alr_fast
other = sys.modules["alr_fast._C"] = types.ModuleType("alr_fast._C")
other.__file__, other.build_info = sys.argv[1], lambda: {"cuda_version": "13.0"}
from alr_fast._installed import build_facts
print(build_facts())
"""
    elsewhere, here = tmp_path / "_C.so", PACKAGE / "_C.so"
    assert python("-c", code, str(elsewhere)).stdout == "None\n"
    assert python("-c", code, str(here)).stdout == "{'cuda_version': '13.0'}\n"


def test_facts_of_an_old_build_lack_some(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_loading, "CUDA_OPERATORS", tmp_path / "_cuda.so")
    monkeypatch.setattr(_installed, "build_facts", lambda: {"cuda_version": None})
    assert _loading._why_cuda_is_not_loaded() == "they were not built"
    monkeypatch.setattr(_installed, "build_facts", lambda: {"cuda_reason": "there is no nvcc"})
    assert _loading._why_cuda_is_not_loaded() == "they were not built (there is no nvcc)"


FAKE_PIP = """
import json, os, sys
variables = {k: os.environ[k] for k in ("ALR_FAST_NATIVE", "ALR_FAST_CUDA") if k in os.environ}
print(json.dumps([sys.argv[1:], variables]))
"""


@pytest.mark.skipif(os.name == "nt", reason="a command of sh")
@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("kind", ["folder", "package", "git", "beside"])
def test_the_command_of_the_warning_runs_as_it_is_printed(uncompiled, tmp_path, kind, cuda):
    source = tmp_path / "it's a (copy) é"
    source.mkdir()
    (source / "setup.py").write_text("")
    (source / "alr_fast-1.tar.gz").write_text("")
    url = source.as_uri()
    record = {
        "folder": {"url": url, "dir_info": {}},
        "package": {"url": f"{url}/alr_fast-1.tar.gz", "archive_info": {}},
        "git": {"url": "https://x.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
        "beside": {},
    }[kind]
    info = uncompiled / "alr_fast-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: alr_fast\nVersion: 1\n")
    (info / "direct_url.json").write_text(json.dumps(record))
    if kind == "beside":  # a source folder, in which the package itself lies
        (uncompiled / "csrc").mkdir()
        (uncompiled / "setup.py").write_text("")
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").write_text("")
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(FAKE_PIP)

    code = "from alr_fast._installed import how_to_compile\n"
    code += f"print(how_to_compile(cuda={cuda}))"
    printed = in_folder(uncompiled, "-c", code).stdout
    assert printed.count("\n") == 1
    command = re.search("`(.*)`", printed)[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ALR_FAST_")}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path / "fake")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (*options, target), variables = json.loads(done.stdout.splitlines()[-1])
    assert variables == {"ALR_FAST_NATIVE": "1"} | ({"ALR_FAST_CUDA": "1"} if cuda else {})
    fresh = ["--editable"] if kind == "beside" else ["--force-reinstall"]
    fresh += ["--no-cache-dir"] if kind in ("package", "git") else []
    assert options == ["install", "--no-build-isolation", "--no-deps", *fresh]
    if target.startswith("file://"):
        target = url2pathname(urlsplit(target).path)
    assert (
        target
        == {
            "folder": str(source),
            "package": str(source / "alr_fast-1.tar.gz"),
            "git": "git+https://x.org/a.git@12ab",
            "beside": str(uncompiled),
        }[kind]
    )


def test_the_command_of_the_warning_renews_setuptools_that_is_too_old(monkeypatch):
    monkeypatch.setattr(_installed, "version", lambda name: "65.5.0.post1")
    assert "setuptools>=77" in _installed.how_to_compile()
    monkeypatch.setattr(_installed, "version", lambda name: "77")
    assert "setuptools" not in _installed.how_to_compile()


def test_modules_may_be_loaded_again_and_processes_started(uncompiled):
    again = """
import importlib, multiprocessing, sys, threading
import alr_fast._operators as operators
importlib.reload(operators)
for name in [name for name in sys.modules if name.partition('.')[0] == 'alr_fast']:
    del sys.modules[name]
import torch
from alr_fast.functional import alr_loss

def loss(queue=None):
    value = alr_loss(torch.zeros(2, 3), torch.full((2, 3), 1 / 3), torch.arange(2)).item()
    if queue is not None:
        queue.put(value)

if __name__ == "__main__":
    loss()
    threads = [threading.Thread(target=loss) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=loss, args=(queue,))
        process.start()
        process.join()
        assert process.exitcode == 0, method
        print(round(queue.get(), 3))
"""
    path = uncompiled / "again.py"
    path.write_text(again)
    done = in_folder(uncompiled, str(path))
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 1 and len(done.stdout.split()) == 2
    assert done.stderr.count("FallbackWarning: ") == 1


# A device without native kernels, in a process whose CPU kernels are loaded.

OTHER_MAJOR = """
import warnings
import torch
torch.version.cuda = "1.0"
from alr_fast import _loading
told = []
_loading._tell = told.append
from alr_fast._loading import LOADED
assert LOADED.native is None and not told, LOADED
say = _loading._TellOnce({wanted!r}, LOADED.native, LOADED.cuda)
say(); say()
print(LOADED.cuda, "|", *told, sep="\\n")
"""


@needs_native
@pytest.mark.native
def test_a_torch_of_another_cuda_is_said_at_the_first_use():
    done = python("-c", OTHER_MAJOR.format(wanted=""))
    assert done.returncode == 0, done.stderr
    reason, _, *told = done.stdout.splitlines()
    assert len(told) == 1 and reason in told[0]
    assert "ALR_FAST_CUDA=1" in told[0]
    assert reason.startswith("they were not built") or "of CUDA 1.0" in reason
    silent = python("-c", OTHER_MAJOR.format(wanted="0"))
    assert silent.stdout.splitlines()[2:] == []
    required = python("-c", OTHER_MAJOR.format(wanted="1"))
    assert "NativeLibraryError: ALR_FAST_NATIVE=1, but alr_fast has no kernels" in required.stderr


def test_which_kernels_are_not_opened(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(_loading, "_OPS", SimpleNamespace(load_library=opened.append))
    monkeypatch.setattr(_loading, "CUDA_OPERATORS", tmp_path / "_cuda.so")
    (tmp_path / "_cuda.so").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    for facts, reason in [
        (None, "alr_fast._C, which knows their CUDA version, is not built for"),
        ({"cuda_version": None}, "does not belong to this build"),
        ({"cuda_version": "12.8"}, "they are of CUDA 12.8, torch"),
    ]:
        monkeypatch.setattr(_installed, "build_facts", lambda facts=facts: facts)
        assert reason in _loading._why_cuda_is_not_loaded()
    assert opened == []
    monkeypatch.setattr(_installed, "build_facts", lambda: {"cuda_version": "13.0"})
    assert _loading._why_cuda_is_not_loaded() is None and len(opened) == 1
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert _loading._why_cuda_is_not_loaded() == "they are not for ROCm"


def test_required_kernels_are_an_error_each_time():
    on_use = _loading._TellOnce("1", None, "they were not built")
    for _ in range(2):
        with pytest.raises(NativeLibraryError, match="no kernels for this device: they were not"):
            on_use()


def test_only_the_first_of_the_processes_that_work_together_speaks(uncompiled):
    done = in_folder(uncompiled, "-c", STEP, RANK="0")
    assert done.stderr.count("FallbackWarning: ") == 1
    done = in_folder(uncompiled, "-c", STEP, RANK="1")
    assert (done.returncode, done.stderr) == (0, "")


# On a GPU only: the plain operators there.


def test_on_a_gpu_nothing_waits():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    tensors = [t.cuda() for t in arguments()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = plain.alr_loss(*tensors, 0.7, 0.3, 1, False, 2, raises=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ours = arguments()
    want = plain.alr_loss(*ours, 0.7, 0.3, 1, False, 2)
    for a, b in zip([*got, *tensors], [*want, *ours], strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stochastic_rounding_gives_numbers_of_the_type(dtype):
    """Otherwise they would be rounded a second time, to the nearest, and the mean would be off."""
    magnitudes = torch.cat([torch.linspace(2.0**k, 2.0 ** (k + 1), 500) for k in range(-26, 1)])
    x = torch.stack([magnitudes, -magnitudes])
    state = torch.tensor([7, 3])
    rounded = rounded_stochastically(x, torch.arange(2), dtype, state)
    assert torch.equal(rounded, rounded.to(dtype).float())
    assert (rounded != x).any()
