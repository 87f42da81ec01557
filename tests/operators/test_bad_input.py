"""Wrong arguments: an error that names the argument, raised before anything is changed."""

import numpy as np
import pytest
import torch

from alr_fast.functional import (
    alr_loss,
    alr_loss_and_grad,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
)
from alr_fast.losses import CrossEntropyLoss, ForwardCorrectionLoss
from helpers.compare import same_bits
from helpers.problems import make_problem

pytestmark = pytest.mark.usefixtures("autograd_node")

B, K, N = 4, 6, 11


def arguments(device):
    problem = make_problem(B, K, device=device)
    return dict(logits=problem.logits, table=problem.table, index=problem.index)


def overlapping(t):
    return t[:1].expand_as(t)


# Case -> (argument that becomes wrong, how, message).
TENSORS = {
    "logits of one dimension": ("logits", lambda t: t[0], r"logits must have two dimensions"),
    "logits of three": ("logits", lambda t: t[None], r"logits must have two dimensions"),
    "no classes": ("logits", lambda t: t[:, :0], r"logits must have at least one class"),
    "transposed logits": (
        "logits",
        lambda t: t.T.contiguous().T,
        r"logits must be contiguous in its last dimension",
    ),
    "integer logits": ("logits", lambda t: t.long(), r"logits must be float32"),
    "complex logits": ("logits", lambda t: t.cfloat(), r"logits must be float32"),
    "more rows": ("logits", lambda t: torch.cat([t, t]), r"index|labels must have shape \[8\]"),
    "index of two dimensions": ("index", lambda t: t[None], r"(index|labels).* must have shape"),
    "short index": ("index", lambda t: t[:-1], r"(index|labels) must have shape \[4\]"),
    "float index": ("index", lambda t: t.float(), r"(index|labels) .*: must be integers"),
    "bool index": ("index", lambda t: t > 0, r"(index|labels) .*: must be integers"),
    "table of one dimension": ("table", lambda t: t[0], r"(bank|table) must have two dimensions"),
    "other classes": ("table", lambda t: t[:, :-1], r"(bank|table) has 5 classes, the logits"),
    "transposed table": (
        "table",
        lambda t: t.T.contiguous().T,
        r"(bank|table) must be contiguous in its last dimension",
    ),
    "float64 table": ("table", lambda t: t.double(), r"(bank|table) must be float32"),
    "integer table": ("table", lambda t: t.long(), r"(bank|table) must be float32"),
    "index elsewhere": ("index", lambda t: elsewhere(t), r"(index|labels)"),
    "table elsewhere": ("table", lambda t: elsewhere(t), r"(bank|table)"),
}

VALUES = {
    "unknown reduction": (dict(reduction="avg"), r"reduction must be one of none, mean, sum"),
    "infinite entropy weight": (dict(entropy_weight=float("inf")), r"entropy_weight must be"),
    "NaN entropy weight": (dict(entropy_weight=float("nan")), r"entropy_weight must be finite"),
    "short row_weight": (dict(row_weight=torch.ones(B - 1)), r"row_weight must have shape \[4\]"),
    "row_weight [B, 1]": (dict(row_weight=torch.ones(B, 1)), r"row_weight must have shape \[4\]"),
}

MOMENTA = {"negative": -0.1, "above one": 1.1, "NaN": float("nan")}


def elsewhere(t):
    """The tensor on another device: the CPU if it is on a GPU, otherwise the meta device."""
    return t.cpu() if t.is_cuda else t.to("meta")


def refuses(call, message, *unchanged):
    before = [t.clone() if t.device.type != "meta" else None for t in unchanged]
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()
    for tensor, copy in zip(unchanged, before, strict=True):
        assert copy is None or torch.equal(tensor, copy)


@pytest.mark.parametrize("operation", [alr_loss, alr_loss_and_grad, soft_target_cross_entropy])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_the_operations_with_a_table(device, case, operation):
    name, spoil, message = TENSORS[case]
    good = arguments(device)
    bad = {**good, name: spoil(good[name])}
    refuses(lambda: operation(*bad.values()), message, bad["table"])
    if bad["logits"].is_floating_point():
        leaf = bad["logits"].detach().requires_grad_()
        refuses(lambda: operation(leaf, *list(bad.values())[1:]), message, bad["table"])


@pytest.mark.parametrize("case", [c for c, (name, *_) in TENSORS.items() if name != "table"])
def test_tensors_of_label_smoothing(device, case):
    name, spoil, message = TENSORS[case]
    good = arguments(device)
    good["index"] = good["index"] % K
    bad = {**good, name: spoil(good[name])}
    refuses(lambda: label_smoothing_cross_entropy(bad["logits"], bad["index"]), message)


@pytest.mark.parametrize("case", VALUES)
def test_values_of_the_options(device, case):
    options, message = VALUES[case]
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    z, t, i = arguments(device).values()
    for operation in (alr_loss, alr_loss_and_grad, soft_target_cross_entropy):
        refuses(lambda operation=operation: operation(z, t, i, **options), message, t)
    refuses(lambda: label_smoothing_cross_entropy(z, i % K, **options), message)


@pytest.mark.parametrize("case", MOMENTA)
def test_momentum_outside_of_0_to_1(device, case):
    z, t, i = arguments(device).values()
    for operation in (alr_loss, alr_loss_and_grad):
        for update in (True, False):
            refuses(
                lambda operation=operation, update=update: operation(
                    z, t, i, momentum=MOMENTA[case], update=update
                ),
                r"momentum must lie in \[0, 1\]",
                t,
            )


def test_smoothing_that_is_not_finite(device):
    z, _, i = arguments(device).values()
    for value in (float("nan"), float("inf")):
        refuses(
            lambda value=value: label_smoothing_cross_entropy(z, i % K, smoothing=value),
            "smoothing must be finite",
        )


def test_a_bank_whose_rows_overlap(device):
    z, t, i = arguments(device).values()
    bank = t[:1].clone()
    refuses(lambda: alr_loss(z, bank.expand(N, K), i), "bank rows overlap", bank)
    # A table that is only read may be expanded.
    table = t[:1].expand(N, K)
    assert torch.equal(
        soft_target_cross_entropy(z, table, i),
        soft_target_cross_entropy(z, table.contiguous(), i),
    )


def test_soft_targets_without_an_index_need_a_row_each(device):
    z, t, _ = arguments(device).values()
    refuses(lambda: soft_target_cross_entropy(z, t), r"one row for each of the 4 rows", t)


def test_row_weight_on_another_device(device):
    z, t, i = arguments(device).values()
    weight = elsewhere(torch.ones(B, device=device))
    refuses(lambda: alr_loss(z, t, i, row_weight=weight), "row_weight", t)


def test_cuda_logits_with_a_bank_in_ordinary_host_memory(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    z, t, i = arguments(device).values()
    bank = t.cpu()
    refuses(lambda: alr_loss(z, bank, i), "bank is on another device.*pin", bank)
    expected, pinned = t.clone(), bank.pin_memory()
    loss = alr_loss(z, expected, i)
    assert torch.equal(alr_loss(z, pinned, i), loss)
    torch.cuda.synchronize()
    assert same_bits(pinned, expected.cpu())


# Memory that logits and bank share.


def test_logits_in_the_memory_of_the_bank(device):
    memory = torch.rand(N + B, K, device=device)
    i = torch.arange(B, device=device)
    shared = {
        "a part": (memory[:B], memory[:N]),
        "the last row": (memory[N - 1 : N - 1 + B], memory[:N]),
        "the same row": (memory[3:4].expand(B, K), memory[:N]),
        "the same columns": (
            torch.as_strided(memory, (B, 3), (6, 1)),
            torch.as_strided(memory, (N, 3), (6, 1), 2),
        ),
    }
    for case, (logits, bank) in shared.items():
        for operation in (alr_loss, alr_loss_and_grad):
            refuses(
                lambda operation=operation, z=logits, bank=bank: operation(z, bank, i),
                r"logits and bank share memory.*logits\.clone",
                memory,
            )
        alr_loss(logits.clone(), bank.clone(), i), case
        alr_loss(logits, bank, i, update=False)


def test_logits_beside_the_bank(device):
    memory = torch.rand(N + B, 2 * K, device=device)
    i = torch.arange(B, device=device)
    apart = {
        "the rows after it": (memory[N:, :K], memory[:N, :K]),
        "other columns": (memory[:B, K:], memory[:N, :K]),
        "the columns before": (memory[2 : 2 + B, :K], memory[:N, K:]),
    }
    for logits, bank in apart.values():
        z, expected = logits.clone(), bank.clone()
        loss = alr_loss(z, expected, i)
        assert torch.equal(alr_loss(logits, bank, i), loss)
        assert same_bits(bank.clone(), expected)


def test_distributed_tensors_are_refused_by_name(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        z, t, i = arguments("cpu").values()
        mesh = init_device_mesh("cpu", (1,))
        logits = DTensor.from_local(z, mesh)
        message = r"logits: a DTensor.*full_tensor\(\).*to_local\(\)"
        for operation in (alr_loss, alr_loss_and_grad, soft_target_cross_entropy):
            refuses(lambda operation=operation: operation(logits, t, i), message, t)
        refuses(lambda: label_smoothing_cross_entropy(logits, i % K), message)
        for loss in (CrossEntropyLoss(), ForwardCorrectionLoss(torch.eye(K))):
            refuses(lambda loss=loss: loss(logits, i % K), message)
        expected = alr_loss(z, t.clone(), i)
        assert torch.equal(alr_loss(logits.to_local(), t.clone(), i), expected)
        assert torch.equal(alr_loss(logits.full_tensor(), t, i), expected)
    finally:
        dist.destroy_process_group()


# Empty batches.


EMPTY = {
    "made": lambda n: torch.empty(0, n),
    "from NumPy": lambda n: torch.from_numpy(np.zeros((0, n), dtype=np.float32)),
    "from NumPy, reversed": lambda n: torch.from_numpy(np.zeros((5, n), np.float32)[5:].copy("F")),
    "transposed": lambda n: torch.empty(n, 0).T,
    "expanded": lambda n: torch.empty(1, n)[:0].expand(0, n),
    "strided": lambda n: torch.empty(4, 3 * n)[:0, ::3],
}


@pytest.mark.parametrize("case", EMPTY)
def test_empty_batches_with_any_strides(device, case):
    _, t, _ = arguments(device).values()
    before = t.clone()
    z = EMPTY[case](K).to(device)
    i = torch.from_numpy(np.zeros((0,), dtype=np.int64)).to(device)
    vectors = {"index": i, "labels": i[::2], "row_weight": torch.empty(0, 4, device=device)[:, 1]}
    given = torch.zeros(N, dtype=torch.int32, device=device)
    for reduction in ("none", "mean", "sum"):
        options = dict(reduction=reduction, row_weight=vectors["row_weight"], given_labels=given)
        for call in (
            lambda z, o=options: alr_loss(z, t, i, labels=vectors["labels"], **o),
            lambda z, o=options: soft_target_cross_entropy(z, t, i, labels=i, **o),
            lambda z, o=options: label_smoothing_cross_entropy(z, i, index=i, **o),
            lambda z, r=reduction: soft_target_cross_entropy(z, z.detach(), reduction=r),
        ):
            leaf = z.detach().requires_grad_()
            loss = call(leaf)
            assert loss.shape == ((0,) if reduction == "none" else ())
            assert loss.sum() == 0
            loss.sum().backward()
            assert leaf.grad.shape == (0, K)
        loss, grad = alr_loss_and_grad(z, t, i, labels=i, **options)
        assert loss.sum() == 0 and grad.shape == (0, K)
    assert same_bits(t, before)
