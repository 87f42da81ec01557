"""Placement of bank rows: choice by size, pinned memory, files, memory that a file saves."""

import errno
import gc
import json
import mmap
import os
import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from alr_fast._loading import HAS_CUDA
from alr_fast.bank import placement
from alr_fast.bank.placement import allocate_rows, choose_placement, read_in_order
from alr_fast.errors import UserError

GB = 10**9

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and HAS_CUDA), reason="needs a GPU that pins host memory"
)


@pytest.fixture
def memory(monkeypatch):
    """Sets the memory of the machine: memory(host, gpu), in bytes."""

    def set_to(host, gpu=0):
        monkeypatch.setattr(placement, "available_memory", lambda: host)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu, 2 * gpu))

    return set_to


@pytest.mark.parametrize(
    ("num_bytes", "processes", "expected", "why"),
    [
        (5 * GB, 1, "device", "5.0 GB, within a quarter of the 20.0 GB available"),
        (5 * GB + 1, 1, "file", "5.0 GB, more than a quarter of the 20.0 GB available"),
        (96 * GB // 10, 1, "file", "9.6 GB, more than a quarter of the 20.0 GB available"),
        (GB, 5, "device", "5 x 1.0 GB, within a quarter of the 20.0 GB available"),
        (GB + 1, 5, "file", "5 x 1.0 GB, more than a quarter of the 20.0 GB available"),
        (34 * 10**6, 1, "device", "34 MB, within a quarter of the 20.0 GB available"),
        (400, 1, "device", "0 kB, within a quarter of the 20.0 GB available"),
    ],
)
def test_on_the_cpu_a_quarter_of_the_memory_decides(memory, num_bytes, processes, expected, why):
    memory(20 * GB)
    choice = choose_placement(num_bytes, "cpu", processes=processes)
    assert (choice.placement, choice.why) == (expected, why)


@pytest.mark.parametrize(
    ("num_bytes", "processes", "expected", "why"),
    [
        (8 * GB, 1, "device", "8.0 GB, within half of the 16.0 GB free on the GPU"),
        # Each process has its own GPU, so the memory of the host has no effect.
        (8 * GB, 9, "device", "8.0 GB, within half of the 16.0 GB free on the GPU"),
        (8 * GB + 1, 1, "pinned", "8.0 GB, more than half of the 16.0 GB free on the GPU"),
        (30 * GB, 1, "pinned", "30.0 GB, more than half of the 16.0 GB free on the GPU"),
        (10 * GB, 3, "pinned", "10.0 GB, more than half of the 16.0 GB free on the GPU"),
    ],
)
def test_on_a_gpu_half_of_its_memory_decides(memory, num_bytes, processes, expected, why):
    memory(60 * GB, 16 * GB)
    choice = choose_placement(num_bytes, "cuda:0", processes=processes)
    assert (choice.placement, choice.why) == (expected, why)


@pytest.mark.parametrize(("num_bytes", "processes"), [(30 * GB + 1, 1), (10 * GB + 1, 3)])
def test_a_bank_that_fits_nowhere_is_refused(memory, num_bytes, processes):
    memory(60 * GB, 16 * GB)
    together = "3 x 10.0 GB" if processes == 3 else "30.0 GB"
    message = f"half of the 16.0 GB free on the GPU, {together} more than half of the 60.0 GB"
    with pytest.raises(UserError, match=message + ".*dtype bfloat16.*processes or nodes"):
        choose_placement(num_bytes, "cuda:0", processes=processes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["device", "file"])
def test_rows_are_zeros_of_that_shape(tmp_path, dtype, where):
    rows = allocate_rows(5, 3, dtype=dtype, device="cpu", placement=where, folder=tmp_path)
    assert (rows.shape, rows.dtype, rows.device.type) == ((5, 3), dtype, "cpu")
    assert rows.is_contiguous()
    assert not rows.any()
    rows[4, 2] = 0.5
    assert rows.sum() == 0.5


def mapping_of(rows):
    """The line of /proc/self/maps that contains the rows: range, access, ..., file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= rows.data_ptr() < high:
            return line


def flags_of(rows):
    """The flags of the mapping of the rows in the kernel."""
    here = mapping_of(rows).split()[0]
    _, _, after = Path("/proc/self/smaps").read_text().partition(here)
    return after.partition("VmFlags:")[2].split("\n")[0].split()


def test_a_file_is_unlinked_and_has_all_its_space(tmp_path):
    before = os.statvfs(tmp_path).f_bfree
    rows = allocate_rows(
        8192, 1000, dtype=torch.float32, device="cpu", placement="file", folder=tmp_path
    )
    taken = (before - os.statvfs(tmp_path).f_bfree) * os.statvfs(tmp_path).f_frsize
    assert list(tmp_path.iterdir()) == []
    line = mapping_of(rows)
    assert " rw-s " in line
    assert f"{tmp_path}/bank_" in line
    assert line.endswith("(deleted)")
    # Half, because other processes write to this disk, too.
    assert taken > rows.nbytes / 2
    handles = [os.readlink(f.path) for f in os.scandir("/proc/self/fd") if os.path.islink(f.path)]
    assert sum(str(tmp_path) in name for name in handles) <= 1
    part = rows[3]
    del rows
    gc.collect()
    part.fill_(1)  # any view keeps the file alive
    address = part.data_ptr()
    del part
    gc.collect()
    assert f"{tmp_path}/bank_" not in Path("/proc/self/maps").read_text(), hex(address)


def test_the_kernel_reads_ahead_only_in_order(tmp_path):
    rows = allocate_rows(
        99, 1000, dtype=torch.float32, device="cpu", placement="file", folder=tmp_path
    )
    assert "rr" in flags_of(rows)
    with pytest.raises(ZeroDivisionError), read_in_order(rows):
        assert "rr" not in flags_of(rows)
        raise ZeroDivisionError
    assert "rr" in flags_of(rows)


def test_a_disk_that_is_too_small_is_refused_at_once(tmp_path, monkeypatch):
    def full(handle, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = (
        rf"folder {tmp_path}: the label bank needs a file of 4.0 GB here, which failed: "
        "No space left on device; pass a folder.*dtype bfloat16"
    )
    with pytest.raises(UserError, match=message):
        allocate_rows(
            10**6, 1000, dtype=torch.float32, device="cpu", placement="file", folder=tmp_path
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def largest_file():
    """Limits the size of files to 4 MB, as a quota would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_real_limit_is_an_error_and_no_signal(tmp_path, monkeypatch, largest_file, reserves):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if not reserves:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    options = dict(dtype=torch.float32, device="cpu", placement="file", folder=tmp_path)
    assert allocate_rows(1000, 1000, **options).fill_(1).sum() == 10**6
    message = f"{tmp_path}: .* needs a file of 4 MB here, which failed: File too large"
    with pytest.raises(UserError, match=message):
        allocate_rows(1001, 1000, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(placement="disk"), ValueError, "placement disk: must be one of device, pinned, file"),
        (dict(placement="auto"), ValueError, "choose_placement chooses by size"),
        (
            dict(placement="file", device="cuda:0"),
            UserError,
            "the logits are on cuda:0; use pinned",
        ),
        (dict(placement="pinned"), UserError, "training on a GPU.*CPU; use device, or file"),
        (dict(placement="file"), UserError, "folder: missing; .* needs a folder on a local disk"),
        (
            dict(placement="file", folder="/none"),
            UserError,
            "folder /none: .* of 0 kB here.*No such file",
        ),
        (dict(placement="device", samples=0), ValueError, "at least one sample and one class"),
        (dict(placement="file", classes=0), ValueError, "at least one sample and one class"),
    ],
)
def test_impossible_options_are_refused(options, error, message):
    options = dict(samples=5, classes=3, device="cpu") | options
    with pytest.raises(error, match=message):
        allocate_rows(options.pop("samples"), options.pop("classes"), dtype=torch.half, **options)


class FakeCuda:
    """Replaces torch.cuda.cudart(): records registrations."""

    def __init__(self, result=0):
        self.result, self.calls = result, []

    def cudaHostRegister(self, address, size, flags):
        self.calls.append(("register", address, size, flags))
        return self.result

    def cudaHostUnregister(self, address):
        self.calls.append(("unregister", address))


@pytest.fixture
def fake_cuda(monkeypatch):
    def make(**options):
        cuda = FakeCuda(**options)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        return cuda

    return make


def pinned_rows(dtype=torch.bfloat16):
    return allocate_rows(3000, 5, dtype=dtype, device="cuda:0", placement="pinned")


def test_pinned_rows_are_registered_as_long_as_they_are_used(fake_cuda):
    cuda = fake_cuda()
    rows = pinned_rows()
    assert (rows.shape, rows.dtype, rows.device.type) == ((3000, 5), torch.bfloat16, "cpu")
    assert not rows.any()
    address = rows.data_ptr()
    assert cuda.calls == [("register", address, 30_000, 0)]  # exactly the needed size
    assert address % mmap.PAGESIZE == 0
    assert " rw-p " in mapping_of(rows)
    assert "dc" in flags_of(rows)  # a forked process gets no copy of it
    view = rows[7]
    del rows
    gc.collect()
    assert len(cuda.calls) == 1
    view.fill_(1)
    del view
    gc.collect()
    assert cuda.calls[1:] == [("unregister", address)]


def test_a_forked_process_leaves_the_registration_alone(fake_cuda, monkeypatch):
    cuda = fake_cuda()
    rows = pinned_rows()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    del rows
    gc.collect()
    assert len(cuda.calls) == 1


def test_memory_that_cannot_be_pinned_is_refused(fake_cuda):
    cuda = fake_cuda(result=2)
    with pytest.raises(UserError, match=r"30 kB of host memory.*CUDA error 2\); free host memory"):
        pinned_rows()
    gc.collect()
    assert len(cuda.calls) == 1  # nothing is unpinned that was not pinned


@needs_gpu
def test_pinned_rows_are_pinned():
    rows = pinned_rows(torch.float32)
    assert rows.is_pinned()
    assert not rows.any()
    view = rows[5:]
    del rows
    gc.collect()
    assert view.is_pinned()


# Peaks of anonymous memory, in MB, are sampled by a thread, in a process that does nothing else.
BIG = """
import json, sys, threading, time, torch
from alr_fast import LabelBank
from alr_fast.bank.file import BankFileWriter
from alr_fast.functional import alr_loss_and_grad

folder, k = sys.argv[1], 1000
torch.set_num_threads(1)

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6

def record():
    peaks[phase] = max(peaks.get(phase, 0), anonymous())

def sample():
    while not over:
        record()
        time.sleep(0.002)

def begin(name):
    global phase
    record()  # on a busy machine the thread may not run within a short phase
    phase = name

def use(where, samples):
    global phase, over, peaks
    base, phase, over, peaks = anonymous(), "make", False, {}
    thread = threading.Thread(target=sample)
    thread.start()
    labels = torch.arange(samples) % k
    bank = LabelBank.from_labels(labels, k, device="cpu", placement=where, folder=folder)
    begin("train")
    g = torch.Generator().manual_seed(0)
    for _ in range(30):
        index = torch.randint(samples, (256,), generator=g)
        alr_loss_and_grad(torch.randn(256, k, generator=g), bank.rows, index)
    begin("summary")
    assert bank.class_counts().sum() == samples
    changed = int((bank.confidence() < 1).sum())
    begin("export")
    with BankFileWriter(
        f"{folder}/bank.safetensors", num_samples=samples, num_classes=k, dtype=torch.float32,
        tensors={"given_labels": labels}, metadata={},
    ) as writer:
        with bank.host_access():
            writer.write(torch.arange(samples), bank.rows)
    over = True
    thread.join()
    return {"changed": changed, **{name: peak - base for name, peak in peaks.items()}}

use("file", 1000)  # memory that the libraries keep after their first use
big, small = use("file", int(sys.argv[2])), use("device", 25_000)
print(json.dumps({"file": big, "device": small}))
"""


def test_a_bank_in_a_file_is_never_in_memory(tmp_path):
    found = anonymous_peaks(tmp_path, 200_000)
    in_file, in_memory = found["file"], found["device"]
    assert 7000 < in_file.pop("changed") <= 30 * 256
    assert in_file.keys() == {"make", "train", "summary", "export"}
    assert max(in_file.values()) < 100, found  # of 800 MB
    # The measurement detects the 100 MB of a bank in memory.
    assert min(in_memory[phase] for phase in ("train", "summary", "export")) > 90, found
    (exported,) = tmp_path.iterdir()
    assert exported.name == "bank.safetensors"
    exported.unlink()  # pytest keeps the folders of the last runs


def anonymous_peaks(folder, samples):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", BIG, str(folder), str(samples)],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
