"""Wrong implementations, each of which the comparison must reject."""

from dataclasses import replace

import pytest
import torch

from helpers.compare import assert_right
from helpers.problems import Problem, Result, make_problem

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
OPTIONS = dict(momentum=0.7, entropy_weight=0.3, reduction="mean")


def batch(logits=F32, bank=F32):
    """17 classes, with an ignored row and an index that comes twice."""
    problem = make_problem(12, 17, logits=logits, bank=bank, spread=2)
    problem.index[3] = -1
    problem.index[9] = problem.index[2].clone()
    return problem


def formulas(
    problem: Problem,
    *,
    mass: bool = True,
    entropy_sign: int = 1,
    entropy_gradient: bool = True,
    reads_new_rows: bool = False,
    offset_in_mean: int = 0,
) -> Result:
    """The formulas of the operation, independent of the reference; each option adds a fault."""
    a, lam = OPTIONS["momentum"], entropy_sign * OPTIONS["entropy_weight"]
    z, index = problem.logits.double(), problem.index
    old_table, table = problem.table.double(), problem.table.clone()
    count = (index >= 0).sum().item() + offset_in_mean
    loss, grad = torch.zeros(()).double(), torch.zeros_like(z)
    for b in range(len(z)):
        i = index[b].item()
        if i < 0:
            continue
        old = table[i].double() if reads_new_rows else old_table[i]
        log_p = z[b] - z[b].exp().sum().log()
        p = log_p.exp()
        entropy = -(p * log_p).sum()
        target = a * old + (1 - a) * p
        table[i] = target.to(table.dtype)
        loss += -(target * log_p).sum() + lam * entropy
        grad[b] = a * ((old.sum() if mass else 1) * p - old)
        if entropy_gradient:
            grad[b] -= lam * p * (log_p + entropy)
    return Result((loss / count).float(), (grad / count).to(problem.logits.dtype), table)


def off_target_zero(result, problem):
    target = result.table[problem.index.clamp(min=0)].argmax(-1, keepdim=True)
    keep = torch.zeros_like(result.grad, dtype=torch.bool).scatter_(1, target, True)
    return replace(result, grad=result.grad.masked_fill(~keep, 0))


def changed(result, name, change):
    copy = getattr(result, name).clone()
    change(copy)
    return replace(result, **{name: copy})


def set_to(*where, value):
    def change(tensor):
        tensor[where] = value

    return change


def first_kept(result, problem):
    # The row as it would be if the first of the two rows with its index were kept.
    index = problem.index.clone()
    index[9] = -1
    alone = formulas(problem.with_(index=index))
    row = problem.index[2]
    return changed(result, "table", set_to(row, value=alone.table[row]))


def stale(result, problem):
    row = problem.index[5]
    return changed(result, "table", set_to(row, value=problem.table[row]))


def written_too_far(result, problem):
    untouched = next(i for i in range(len(problem.table)) if i not in problem.index)
    return changed(result, "table", set_to(untouched, 0, value=result.table[untouched, 0] + 0.01))


# Name -> the result of an implementation with that fault.
MUTANTS = {
    "no mass of the target row in the gradient": lambda p, r: formulas(p, mass=False),
    "entropy maximised": lambda p, r: formulas(p, entropy_sign=-1),
    "no gradient of the entropy": lambda p, r: formulas(p, entropy_gradient=False),
    "the second row of an index reads the new row": lambda p, r: formulas(p, reads_new_rows=True),
    "the first row of an index is kept": lambda p, r: first_kept(r, p),
    "mean over ignored rows too": lambda p, r: formulas(p, offset_in_mean=1),
    "gradient zero off the target": lambda p, r: off_target_zero(r, p),
    "gradient zero": lambda p, r: replace(r, grad=torch.zeros_like(r.grad)),
    "gradient of the sum": lambda p, r: replace(r, grad=r.grad * 11),
    "gradient lost in the tail": lambda p, r: changed(r, "grad", set_to(..., 16, value=0)),
    "gradient of an ignored row": lambda p, r: changed(r, "grad", set_to(3, 0, value=1e-3)),
    "gradient with a NaN": lambda p, r: changed(r, "grad", set_to(4, 1, value=torch.nan)),
    "gradient all NaN": lambda p, r: replace(r, grad=r.grad * torch.nan),
    "gradient in another dtype": lambda p, r: replace(r, grad=r.grad.double()),
    "stale bank row": lambda p, r: stale(r, p),
    "bank not updated": lambda p, r: replace(r, table=p.table.clone()),
    "bank lost in the tail": lambda p, r: changed(
        r, "table", set_to(p.index[1], 16, value=p.table[p.index[1], 16])
    ),
    "bank written beside its rows": lambda p, r: written_too_far(r, p),
    "bank with a NaN": lambda p, r: changed(r, "table", set_to(p.index[1], 0, value=torch.nan)),
    "loss zero": lambda p, r: replace(r, loss=torch.zeros_like(r.loss)),
    "loss NaN": lambda p, r: replace(r, loss=r.loss * torch.nan),
    "loss off by a thousandth": lambda p, r: replace(r, loss=r.loss * 1.001),
}


@pytest.mark.parametrize("bank", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
def test_the_formulas_themselves_pass(logits, bank):
    problem = batch(logits, bank)
    assert_right(formulas(problem), "alr_loss", problem, **OPTIONS)


@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_rejects(mutant, logits):
    problem = batch(logits)
    wrong = MUTANTS[mutant](problem, formulas(problem))
    with pytest.raises(AssertionError):
        assert_right(wrong, "alr_loss", problem, **OPTIONS)


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if "bank" in m])
def test_the_comparison_rejects_in_a_16_bit_bank(mutant):
    for bank in (F16, BF16):
        problem = batch(bank=bank)
        wrong = MUTANTS[mutant](problem, formulas(problem))
        with pytest.raises(AssertionError):
            assert_right(wrong, "alr_loss", problem, **OPTIONS)
