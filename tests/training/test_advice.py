"""Warnings before training: methods that cannot change a label."""

import pytest

from alr_fast.training.advice import advice
from alr_fast.training.config.command_line import parse
from alr_fast.training.methods import METHODS, keeps_bank

BANKS = [name for name in METHODS if keeps_bank(name)]


def lines(*argv):
    return advice(parse(list(argv)))


@pytest.mark.parametrize("method", ["alr", "selc", "sat"])
def test_six_epochs_are_too_few_for_a_momentum_of_nine_tenths(method):
    six = ("--methods", f"ce,{method}", "--optim.epochs", "6")
    (line,) = lines(*six)
    assert line.startswith(f"{method}: 6 epochs cannot change a label: ")
    assert line.endswith(f"; pass --optim.epochs 8 or more, or --{method}.momentum 0.87 or less")
    assert lines("--methods", method, "--optim.epochs", "8") == []
    assert lines(*six, f"--{method}.momentum", "0.87") == []
    (line,) = lines(*six, f"--{method}.momentum", "0.88")
    assert f"--{method}.momentum 0.87" in line


def test_a_method_whose_bank_starts_at_zero_needs_no_length():
    assert lines("--methods", "elr", "--optim.epochs", "1") == []
    (line,) = lines("--methods", "elr", "--elr.momentum", "1")
    assert line.endswith("; pass --elr.momentum 0.99 or less")


def test_each_method_has_its_own_momentum_and_warm_up():
    argv = ["--methods", "alr,selc,sat,elr,ce", "--optim.epochs", "20"]
    assert lines(*argv) == []
    (selc, sat) = lines(*argv, "--selc.momentum", "0.99", "--sat.warmup_epochs", "14")
    assert selc.startswith("selc: 20 epochs cannot") and "--optim.epochs 82 or more" in selc
    assert sat.startswith("sat: 20 epochs cannot") and "--optim.epochs 21 or more" in sat


def test_the_advice_counts_with_a_warm_up_that_grows_with_the_epochs():
    """A sixth of the epochs is warm-up: 69 refining epochs are those of 82."""
    argv = ["--methods", "alr", "--alr.momentum", "0.99", "--optim.epochs"]
    (line,) = lines(*argv, "60")
    found = int(line.partition("--optim.epochs ")[2].split()[0])
    assert lines(*argv, str(found)) == [] != lines(*argv, str(found - 1))


@pytest.mark.parametrize("method", BANKS)
def test_the_default_settings_need_no_advice(method):
    assert lines("--methods", method) == []


def test_a_bank_that_starts_from_soft_labels_is_refined_already(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = tmp_path / "soft.parquet"
    parquet.write_table(pa.table({"path": ["digits/0"], "probabilities": [[0.1] * 10]}), table)
    argv = ["--methods", "alr,elr", "--optim.epochs", "2", "--noise.kind", "none"]
    assert len(lines(*argv)) == 1
    soft = ["--labels", str(table), "--data.label_key", "probabilities"]
    assert lines(*argv, *soft) == []
