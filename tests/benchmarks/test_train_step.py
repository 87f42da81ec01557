"""Tests of `benchmarks.train_step`."""

import copy
import json
from pathlib import Path

import pytest
import torch

from alr_fast import reference
from benchmarks import train_step
from benchmarks.train_step import TINY_CASES, VARIANTS, Contest, EagerALRLoss, paired_percent
from helpers.benchmark_rows import write_page

pytest.importorskip("rich", reason="benchmarks need the extra bench")
pytest.importorskip("timm", reason="training needs the extra train")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of the command."""
    out = tmp_path_factory.mktemp("train_step") / "rows.json"
    train_step.main(["--tiny", "--threads", "1", "--seconds", "0", "--json", str(out)])
    return json.loads(out.read_text())


def section_of(rows: list[dict], folder: Path) -> str:
    page = write_page(folder, rows)
    return page[page.index("## A whole training step") : page.index("## Processes together")]


def test_every_variant_has_a_row(rows: list[dict]) -> None:
    digits = [row for row in rows if row["case"] == "digits"]
    assert [row["variant"] for row in digits] == list(VARIANTS)
    for row in digits:
        assert row["suite"] == "train_step"
        assert row["environment"]["cpu_isa"]
        assert row["what"] == VARIANTS[row["variant"]]
        assert (row["model"], row["image"], row["precision"]) == ("conv-tiny", [1, 8, 8], "float32")
        assert (row["batch"], row["classes"], row["bank_rows"]) == (8, 3, 64)
        assert 0 < row["ms_p20"] <= row["ms"] <= row["ms_p80"]
        assert (row["rounds"], row["steps_per_turn"]) == (3, 2)
        assert row["weights"] > 10_000
        for base in ("ce", "plain"):
            assert (f"over_{base}_percent" in row) == (row["variant"] != base)
            if row["variant"] != base:
                middle, low, high = row[f"over_{base}_percent"]
                assert -100 < low <= middle <= high


def test_without_a_gpu_a_large_model_is_skipped(rows: list[dict]) -> None:
    (row,) = [row for row in rows if row["case"] == "resnet50"]
    assert (row["variant"], row["skipped"], row["wrong"]) == ("all", "needs a GPU", False)


def test_rows_of_a_whole_run_are_written_to_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict]
) -> None:
    monkeypatch.setattr(train_step, "FOLDER", tmp_path)
    monkeypatch.setattr(train_step, "CASES", TINY_CASES)
    monkeypatch.setattr(
        train_step, "measure", lambda case, *_: [r for r in rows if r["case"] == case.name]
    )
    train_step.main(["--only", "digits"])
    assert not list(tmp_path.iterdir())
    train_step.main([])
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == rows


@pytest.mark.parametrize(
    ("entry", "mutant"),
    [
        ("weights", lambda loss, grad: (loss, grad * 1.001)),
        ("loss", lambda loss, grad: (loss * 1.001, grad)),
    ],
)
def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch, entry: str, mutant) -> None:
    right = EagerALRLoss.loss_and_grad
    monkeypatch.setattr(
        EagerALRLoss, "loss_and_grad", lambda *args, **more: mutant(*right(*args, **more))
    )
    with pytest.raises(AssertionError, match=f"alr_eager and alr: {entry} after a step differ"):
        train_step.measure(TINY_CASES["digits"], "cpu", 0)


def test_a_bank_that_is_not_updated_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.alr_loss_and_grad
    monkeypatch.setattr(
        reference, "alr_loss_and_grad", lambda *args, **more: right(*args, update=False, **more)
    )
    with pytest.raises(AssertionError, match="alr_eager and alr: bank after a step differ"):
        Contest(TINY_CASES["digits"], "cpu").check()


def test_a_loss_that_does_not_refine_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Contest(TINY_CASES["digits"], "cpu")
    stepper = contest.stepper
    plain = {"alr": "ce", "alr_eager": "ce"}
    monkeypatch.setattr(contest, "stepper", lambda variant: stepper(plain.get(variant, variant)))
    with pytest.raises(AssertionError, match="alr makes the same step as ce"):
        contest.check()


def test_the_check_restores_the_model() -> None:
    contest = Contest(TINY_CASES["digits"], "cpu")
    before = copy.deepcopy(contest.model.state_dict())
    contest.check()
    for name, tensor in contest.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_percentages_compare_times_of_the_same_round() -> None:
    base = [1.0, 50.0, 2.0, 8.0, 1.0]
    middle, low, high = paired_percent([1.02 * time for time in base], base)
    assert (middle, low, high) == pytest.approx((2, 2, 2))
    middle, low, high = paired_percent([1.0, 1.1, 1.2, 1.3, 1.4], [1.0] * 5)
    assert low < middle < high
    assert middle == pytest.approx(20)


def test_the_report_shows_the_rows(rows: list[dict], tmp_path: Path) -> None:
    page = section_of(rows, tmp_path)
    for variant in VARIANTS:
        assert f"| digits, 8 x 8, B 8, K 3, float32 | `{variant}` | {VARIANTS[variant]} |" in page
    assert "| resnet50, 32 x 32, B 8, K 3, bfloat16 | all |  | not measured | (needs a GPU)" in page
    assert "`python -m benchmarks.train_step`; [" in page
    assert "| `alr` over `ce`, resnet50 on a GPU | < 1 % | not measured |  |" in page


@pytest.mark.parametrize(
    ("percent", "verdict"),
    [((1.0, 0.5, 1.9), "reached"), ((1.9, 1.0, 2.5), "undecided"), ((3.0, 2.0, 4.0), "missed")],
)
def test_a_goal_is_judged_by_its_interval(
    rows: list[dict], tmp_path: Path, percent: tuple, verdict: str
) -> None:
    rows = copy.deepcopy(rows)
    for row in rows:
        if row["variant"] == "alr":
            row["over_ce_percent"] = list(percent)
    shown = "{:+.1f} ({:+.1f} to {:+.1f})".format(*percent)
    page = section_of(rows, tmp_path)
    assert f"| `alr` over `ce`, digits on a CPU | < 2 % | {shown} | {verdict} |" in page
