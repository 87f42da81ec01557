"""A run of six epochs with 35.6 % wrong labels: no label can change, and nothing is all clear."""

import contextlib
import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from alr_fast.export import main as export
from alr_fast.report import main as report
from alr_fast.train import main as train
from alr_fast.training.open_run import open_run

pytestmark = pytest.mark.usefixtures("one_thread")

ALL_CLEAR = re.compile("no suspicious|looks suspicious|0 suspicious")


@pytest.fixture(scope="module")
def six_epochs(tmp_path_factory):
    """Output of the run, its errors, and its folder."""
    runs = tmp_path_factory.mktemp("runs")
    argv = ["--methods", "alr", "--optim.epochs", "6", "--log.show", "json", "--log.to", "csv"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert train([*argv, "--checkpoint.steps", "72", "--runs", str(runs)]) == 0
    return out.getvalue(), err.getvalue(), (runs / "latest").resolve()


def test_the_warning_comes_before_the_first_epoch(six_epochs):
    events = [json.loads(line) for line in six_epochs[0].splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.index("warning") < kinds.index("epoch")
    warning = events[kinds.index("warning")]["text"]
    assert warning.startswith("alr: 6 epochs cannot change a label")
    assert "--optim.epochs 8 or more, or --alr.momentum 0.87 or less" in warning


def test_the_wrong_labels_are_found_and_counted(six_epochs):
    out, _, run = six_epochs
    with open_run(run) as labels:
        wrong = labels.labels != labels.clean_labels
        assert f"{wrong.mean():.1%}" == "35.6%" and labels.refined_share == 0
        assert average_precision_score(wrong, labels.scores) >= 0.965
        assert labels.noise_rate == pytest.approx(wrong.mean(), abs=0.02)
        suspicious = labels.scores > 0.5
        assert suspicious.sum() == labels.suspicious == round(1437 * labels.noise_rate)
        assert wrong[suspicious].mean() > 0.88 and suspicious[wrong].mean() > 0.88
        assert labels.transition_error < 0.1
        highest = labels.most_suspicious(10).tolist()
    (event,) = [e for e in map(json.loads, out.splitlines()) if e["event"] == "suspects"]
    assert [s["id"] for s in event["samples"]] == highest
    assert event["suspicious"] == suspicious.sum()
    assert event["estimated_rate"] == pytest.approx(0.36, abs=0.02)
    assert event["problem"] == ""


def test_table_and_page_say_the_same(six_epochs, capsys):
    run = six_epochs[2]
    assert export([str(run)]) == report([str(run)]) == 0
    out = capsys.readouterr().out
    page = (run / "report.html").read_text(encoding="utf-8")
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    scores = np.array(pq.read_table(run / "labels.parquet", columns=["score"])["score"])
    rate, count = f"{(scores > 0.5).mean():.1%}", f"{(scores > 0.5).sum():,}"
    said = (
        f"alr: {rate} of the labels are estimated to be wrong, {count} are suspicious (by "
        "predictions alone: too few epochs to refine)"
    )
    assert out.splitlines().count(said) == 2
    assert facts["labels refined to another class"] == "0.0%"
    assert (facts["estimated wrong labels"], facts["suspicious samples"]) == (rate, count)
    body = re.sub("<script.*?</script>", "", page, flags=re.DOTALL)
    assert not ALL_CLEAR.search(out) and not ALL_CLEAR.search(body)


def test_a_checkpoint_knows_the_share_too(six_epochs, tmp_path):
    """A run that was stopped after an epoch is estimated like a finished one."""
    run = six_epochs[2]
    with open_run(run) as labels:
        whole = labels.noise_rate, labels.given_share
    (run / "alr_bank.safetensors").rename(tmp_path / "alr_bank.safetensors")
    (run / "summary.json").rename(tmp_path / "summary.json")
    try:
        with open_run(run) as labels:
            assert not labels.complete
            assert (labels.noise_rate, labels.given_share) == whole
    finally:
        for file in tmp_path.iterdir():
            file.rename(run / file.name)


def test_a_file_of_an_earlier_version_is_no_all_clear(six_epochs, tmp_path):
    """It does not say how much of its rows is the given label."""
    from helpers.exported_runs import content_of_bank, rewrite_bank

    run = six_epochs[2]
    saved = (run / "alr_bank.safetensors").read_bytes()
    try:
        assert float(content_of_bank(run / "alr_bank.safetensors")[1]["given_share"]) == 0.9**5
        rewrite_bank(run, lambda tensors, facts: facts.pop("given_share"))
        with open_run(run) as labels:
            assert "too few epochs" in labels.estimate_problem and np.isnan(labels.noise_rate)
            assert not ALL_CLEAR.search(repr(labels)) and "not estimated" in repr(labels)
        rewrite_bank(run, lambda tensors, facts: facts.update(given_share="2"))
        with pytest.raises(ValueError, match="given_share 2 is no share"), open_run(run):
            pass
    finally:
        (run / "alr_bank.safetensors").write_bytes(saved)
