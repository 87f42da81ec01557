"""Offsets beyond 2^31, banks in files and pinned memory, CUDA graphs, no waiting for the device."""

import subprocess
import sys

import pytest
import torch

from alr_fast import ALRLoss, LabelBank
from alr_fast.functional import alr_loss, alr_loss_and_grad
from helpers.compare import same_bits
from helpers.problems import make_problem, run_exact, run_fused

F32, BF16 = torch.float32, torch.bfloat16
CLASSES = 1000
HALF = 2**31 // CLASSES + 5  # a row that starts beyond 2^31 elements
FAR = 2**32 // CLASSES + 5  # and one beyond 2^32


@pytest.fixture
def huge(device, tmp_path):
    """Creates tensors of zeros; on the CPU only the touched pages take memory."""

    def make(elements, dtype):
        size = elements * dtype.itemsize
        if device.type == "cuda":
            if torch.cuda.mem_get_info()[0] < size + 2**30:
                pytest.skip(f"needs {size / 2**30:.0f} GB of GPU memory")
            return torch.zeros(elements, dtype=dtype, device=device)
        path = tmp_path / "sparse"
        with open(path, "wb") as file:
            file.truncate(size)
        return torch.from_file(str(path), shared=True, size=elements, dtype=dtype)

    return make


@pytest.mark.parametrize("unique_index", [True, False])
def test_bank_rows_beyond_2_to_the_31_elements(device, huge, unique_index):
    bank = huge((FAR + 1) * CLASSES, BF16).view(FAR + 1, CLASSES)
    small = make_problem(6, CLASSES, rows=6, device=device, bank=BF16)
    small = small.with_(index=torch.arange(6, device=device))
    index = torch.tensor([FAR, 0, HALF, 1, FAR - 2, 7], device=device)
    bank[index] = small.table
    fused = run_fused("alr_loss", small)
    leaf = small.logits.detach().requires_grad_()
    loss = alr_loss(leaf, bank, index, unique_index=unique_index)
    loss.backward()
    assert torch.equal(loss.detach(), fused.loss)
    assert same_bits(leaf.grad, fused.grad)
    assert same_bits(bank[index], fused.table)
    for row in (2, 4, 5, 6, 8, HALF - 1, HALF + 1, FAR - 1):
        assert not bank[row].any()


def test_logits_rows_beyond_2_to_the_31_elements(device, huge):
    stride = 2**30 + CLASSES  # same alignment as contiguous rows, so that sums are the same
    small = make_problem(3, CLASSES, device=device, logits=BF16)
    far = huge(2 * stride + CLASSES, BF16).as_strided((3, CLASSES), (stride, 1))
    far.copy_(small.logits)
    fused = run_fused("alr_loss", small)
    moved = run_fused("alr_loss", small.with_(logits=far))
    assert same_bits(moved.loss, fused.loss)
    assert same_bits(moved.grad, fused.grad)
    assert same_bits(moved.table, fused.table)


def test_a_bank_in_a_file_has_the_same_results(tmp_path):
    problem = make_problem(20, 33)
    path = str(tmp_path / "bank")
    rows = torch.from_file(path, shared=True, size=problem.table.numel()).view_as(problem.table)
    rows.copy_(problem.table)
    labels = torch.zeros(20, dtype=torch.int64)
    criterion = ALRLoss(LabelBank(rows, labels.new_zeros(len(rows))), warmup_epochs=0)
    expected = run_fused("alr_loss", problem)
    assert torch.equal(criterion(problem.logits, labels, problem.index), expected.loss)
    again = torch.from_file(path, shared=True, size=rows.numel()).view_as(rows)
    assert same_bits(again, expected.table)


# On a GPU only.


@pytest.fixture
def gpu(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


def test_a_bank_in_pinned_memory_has_the_same_results(gpu):
    problem = make_problem(20, 33, device=gpu)
    rows = problem.table.cpu().pin_memory()
    expected = run_fused("alr_loss", problem)
    loss, grad = alr_loss_and_grad(problem.logits, rows, problem.index)
    torch.cuda.synchronize()
    assert torch.equal(loss, expected.loss)
    torch.testing.assert_close(grad, expected.grad)
    assert same_bits(rows, expected.table.cpu())


@pytest.mark.parametrize("classes", [10, 14, 300, 2056, 21841, 131072])
def test_every_regime_with_a_bank_in_pinned_memory_and_misaligned_rows(gpu, classes):
    problem = make_problem(5, classes, device=gpu)
    expected = run_fused("alr_loss_and_grad", problem)
    rows = torch.empty(len(problem.table), classes).pin_memory().copy_(problem.table)
    wide = torch.empty(5, classes + 3, device=gpu)
    logits = wide[:, 1 : classes + 1]
    logits.copy_(problem.logits)
    loss, grad = alr_loss_and_grad(logits, rows, problem.index)
    torch.cuda.synchronize()
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(grad, expected.grad)
    torch.testing.assert_close(rows, expected.table.cpu())


@pytest.mark.parametrize("classes", [10, 4096, 21841])
def test_the_first_call_of_a_process_may_be_captured(gpu, classes):
    script = f"""
import torch
from alr_fast.functional import alr_loss_and_grad
logits = torch.randn(6, {classes}, device="cuda")
bank = torch.rand(9, {classes}, device="cuda")
index = torch.tensor([0, 3, 3, -1, 8, 1], device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss, grad = alr_loss_and_grad(logits, bank, index)
graph.replay()
torch.cuda.synchronize()
assert loss.isfinite() and grad[3].abs().sum() == 0 and grad.isfinite().all()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unique_index", [True, False])
def test_a_batch_that_a_separate_launch_counts(gpu, unique_index):
    problem = make_problem(5000, 7, device=gpu)
    problem.index[::5] = -1
    if not unique_index:
        problem.index[1::5] = problem.index[2::5]
    for operation in ("alr_loss", "alr_loss_and_grad"):
        expected = run_exact(operation, problem)
        found = run_fused(operation, problem, unique_index=unique_index)
        torch.testing.assert_close(found.loss.double(), expected.loss)
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(found.table.double(), expected.table, rtol=1e-5, atol=1e-7)


def test_streams_and_graphs_do_not_share_counters(gpu):
    problem = make_problem(600, 50, device=gpu)
    want = alr_loss(problem.logits, problem.table.clone(), problem.index)
    banks = [problem.table.clone() for _ in range(8)]
    streams = [torch.cuda.Stream() for _ in banks]
    graph = torch.cuda.CUDAGraph()
    captured = problem.table.clone()
    with torch.cuda.graph(graph):
        replayed = alr_loss(problem.logits, captured, problem.index, update=False)
    torch.cuda.synchronize()
    losses = []
    for _ in range(20):
        graph.replay()
        for stream, bank in zip(streams, banks, strict=True):
            with torch.cuda.stream(stream):
                losses.append(alr_loss(problem.logits, bank, problem.index, update=False))
    torch.cuda.synchronize()
    assert all(torch.equal(loss, want) for loss in (replayed, *losses))


def test_streams_with_one_bank_do_not_share_counters(gpu):
    """As training and evaluation at the same time."""
    problem = make_problem(600, 50, device=gpu)
    labels = torch.zeros(600, dtype=torch.int64, device=gpu)
    bank = LabelBank(problem.table, torch.zeros(len(problem.table), dtype=torch.int64))
    criterion = ALRLoss(bank, warmup_epochs=0)
    streams = [torch.cuda.Stream() for _ in range(8)]
    losses = []
    with torch.no_grad():  # the bank is read
        want = criterion(problem.logits, labels, problem.index)
        torch.cuda.synchronize()
        for _ in range(50):
            for stream in streams:
                with torch.cuda.stream(stream):
                    losses.append(criterion(problem.logits, labels, problem.index))
    torch.cuda.synchronize()
    assert all(torch.equal(loss, want) for loss in losses)


def test_captured_calls_come_and_go(gpu):
    problem = make_problem(3000, 10, device=gpu)
    problem.index[::3] = problem.index[1::3]
    expected = run_fused("alr_loss_and_grad", problem)
    for _ in range(50):
        bank, graph = problem.table.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, grad = alr_loss_and_grad(problem.logits, bank, problem.index)
        for _ in range(3):
            bank.copy_(problem.table)
            graph.replay()
            assert torch.equal(loss, expected.loss) and same_bits(grad, expected.grad)
            assert same_bits(bank, expected.table)


@pytest.mark.parametrize("batch", [2000, 20_000])  # found by each block, and by a separate launch
@pytest.mark.parametrize("share", [0.9, 1.0])
def test_most_rows_have_one_index(gpu, batch, share):
    problem = make_problem(batch, 10, device=gpu)
    problem.index[: int(share * batch)] = 5
    expected = run_exact("alr_loss", problem)
    found = run_fused("alr_loss", problem)
    torch.testing.assert_close(found.loss.double(), expected.loss)
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.table.double(), expected.table, rtol=1e-5, atol=1e-7)


def test_a_step_does_not_wait_for_the_device(gpu):
    problem = make_problem(20, 33, device=gpu)
    leaf = problem.logits.detach().requires_grad_()
    bank = problem.table.clone()
    alr_loss(leaf, bank, problem.index).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for reduction in ("mean", "sum"):
            alr_loss(leaf, bank, problem.index, reduction=reduction).backward()
        alr_loss(leaf, bank, problem.index, reduction="none").sum().backward()
        alr_loss_and_grad(leaf, bank, problem.index, return_stats=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_step_updates_the_bank_at_each_replay_and_not_before(gpu):
    problem = make_problem(20, 33, device=gpu, bank=BF16)
    labels = torch.zeros(20, dtype=torch.int64, device=gpu)

    def criterion():
        rows = problem.table.clone()
        given = torch.zeros(len(rows), dtype=torch.int64)
        return ALRLoss(LabelBank(rows, given, rounding_seed=1), warmup_epochs=0)

    plain, captured = criterion(), criterion()
    leaf = problem.logits.detach().requires_grad_()
    graph = torch.cuda.CUDAGraph()
    with captured.bank.preserved():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                torch.autograd.grad(captured(leaf, labels, problem.index), leaf)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            loss = captured(leaf, labels, problem.index)
            (grad,) = torch.autograd.grad(loss, leaf)
    assert same_bits(captured.bank.rows, problem.table)
    for step in range(1, 4):
        graph.replay()
        expected = plain(leaf, labels, problem.index)
        (want,) = torch.autograd.grad(expected, leaf)
        assert torch.equal(loss, expected)
        assert same_bits(grad, want)
        assert same_bits(captured.bank.rows, plain.bank.rows)  # with the random bits of a new call
        assert captured.bank.rounding_state.tolist() == [1, step]


def test_a_captured_backward_pass_alone_can_be_replayed(gpu):
    problem = make_problem(20, 33, device=gpu)
    problem.index[3] = -1  # or there would be nothing to scale
    leaf = problem.logits.detach().requires_grad_()
    incoming = torch.tensor(3.0, device=gpu)

    def loss_of():
        return alr_loss(leaf, problem.table, problem.index, update=False)

    (want,) = torch.autograd.grad(loss_of(), leaf, incoming)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()  # a backward pass runs on the stream of its forward pass
    for is_forward_captured in (False, True):
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(side):
            if is_forward_captured:
                with torch.cuda.graph(forward, stream=side):
                    loss = loss_of()
                forward.replay()
            else:
                loss = loss_of()
            with torch.cuda.graph(backward, stream=side):
                (grad,) = torch.autograd.grad(loss, leaf, incoming)
            for _ in range(3):
                backward.replay()
                side.synchronize()
                assert same_bits(grad, want)


def test_a_step_is_two_launches_without_a_fill_of_the_incoming_gradient(gpu):
    from torch.profiler import ProfilerActivity, profile

    problem = make_problem(300, 33, device=gpu)
    leaf = problem.logits.detach().requires_grad_()
    bank, one = problem.table.clone(), torch.ones((), device=gpu)

    def names(incoming):
        leaf.grad = None
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            loss = alr_loss(leaf, bank, problem.index, unique_index=True)
            loss.backward(incoming)
            torch.cuda.synchronize()
        on_device = torch.autograd.DeviceType.CUDA
        return [event.name for event in profiler.events() if event.device_type == on_device]

    names(one)  # the first profile may miss some kernels
    launched = names(one)
    assert len(launched) == 2, launched
    assert "row_loss_kernel" in launched[0] and "scale_grad_kernel" in launched[1]
    assert len(names(None)) == 3
