"""Wrong arguments: an error that names the argument, raised before anything is changed."""

import pytest
import torch

from alr_fast.functional import (
    alr_loss,
    alr_loss_and_grad,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
)
from helpers.compare import same_bits
from helpers.problems import make_problem

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
