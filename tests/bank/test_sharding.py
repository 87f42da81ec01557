import copy
import pickle

import pytest
import torch

from alr_fast import ALRLoss, LabelBank
from alr_fast.errors import UserError
from helpers import sharding_workers as workers
from helpers.process_groups import run_group

N, K = workers.N, workers.K


def test_a_shard_takes_the_index_of_the_whole_bank(device):
    whole = workers.new_bank().to(device)
    rows = [5, 2, 19]
    shard = whole.shard(rows)
    assert shard.shard_rows.tolist() == rows and shard.owned and len(shard) == 3
    assert torch.equal(shard.given_labels, whole.given_labels[rows])
    assert torch.equal(shard.rows, whole.rows[rows])
    assert "3 of 23 samples" in repr(shard)
    index = torch.tensor([19, -1, 5], device=device)
    for dtype in (torch.int64, torch.int32):
        local = shard.to_local(index.to(dtype))
        assert local.tolist() == [2, -1, 0] and local.dtype == dtype
    # The same step as in the whole bank.
    logits, labels = torch.randn(3, K, device=device), whole.given_labels[[19, 0, 5]].to(device)
    losses = [
        ALRLoss(bank, warmup_epochs=0).loss_and_grad(logits, labels, index)
        for bank in (whole, shard)
    ]
    assert torch.equal(losses[0][1], losses[1][1])
    assert torch.equal(shard.rows, whole.rows[rows])
    assert (whole.rows[[5, 19]].amax(1) < 1).all()
    assert whole.to_local(index) is index and whole.shard_rows is None


@pytest.mark.parametrize("index", [3, N, 10**9])
def test_rows_of_other_processes_are_refused(index, device):
    shard = workers.new_bank().to(device).shard([5, 2])
    criterion = ALRLoss(shard, warmup_epochs=0, check_labels=False)
    before = shard.rows.clone()
    logits = torch.randn(2, K, device=device)
    arguments = logits, torch.tensor([0, 1], device=device), torch.tensor([5, index], device=device)
    message = r"is not among the 2 rows \(of 23\) that bank\.shard\(rows\) gave .*OwnedRowsSampler"
    if device.type == "cpu":
        with pytest.raises(IndexError, match=rf"index {index} {message}"):
            criterion(*arguments)
        assert torch.equal(shard.rows, before)
    else:
        criterion(*arguments)
        with pytest.raises(IndexError, match=message):
            shard.check()
        assert torch.equal(shard.rows[1], before[1])


def test_a_compiled_step_finds_rows_and_refuses_others():
    shard = workers.new_bank().shard([5, 2])
    to_local = torch.compile(shard.to_local, fullgraph=True, backend="eager")
    assert to_local(torch.tensor([2, -1, 5, 7])).tolist() == [1, -1, 0, 2**31 - 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0.5], "rows: must be integers, got torch.float32"),
        ([], "rows: must be integers|rows: must have shape"),
        ([[1]], r"rows: must have shape \[n\]"),
        ([0, N], rf"rows: must lie in \[0, {N}\), got 0 to {N}"),
        ([-1], "got -1 to -1"),
        ([1, 1], "rows: has a row twice"),
    ],
)
def test_wrong_rows_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        workers.new_bank().shard(rows)


def test_a_shard_is_not_sharded_again():
    with pytest.raises(UserError, match="is a shard already"):
        workers.new_bank().shard([1]).shard([0])


def test_a_shard_is_copied_pickled_and_moved():
    shard = workers.new_bank().shard([5, 2])
    for other in (copy.deepcopy(shard), pickle.loads(pickle.dumps(shard)), shard.to("cpu")):
        assert other.to_local(torch.tensor([2])).tolist() == [1]


def test_labels_of_a_shard_are_corrected_by_the_index_of_the_whole_bank():
    shard = workers.new_bank().shard([5, 2])
    shard.correct_labels([2], [1])
    assert shard.given_labels.tolist() == [3, 1] and shard.rows[1].tolist() == [0, 1, 0, 0]
    with pytest.raises(IndexError, match="index 3 is not among"):
        shard.correct_labels([3], [1])


def test_states_say_which_rows_they_have():
    whole = workers.new_bank()
    workers.train(whole, range(N))
    trained = whole.shard([5, 2])
    assert trained.state_dict()["shard_rows"].tolist() == [5, 2]
    fresh = workers.new_bank()
    with pytest.raises(ValueError, match="has only 2 rows, those of one process"):
        fresh.load_state_dict(trained.state_dict())
    for rows in ([2, 5], [5, 3], [5, 2, 1]):
        with pytest.raises(ValueError, match="has the rows of another process"):
            fresh.shard(rows).load_state_dict(trained.state_dict())
    for state in (trained.state_dict(), whole.state_dict()):
        shard = fresh.shard([5, 2])
        shard.load_state_dict(state)
        assert torch.equal(shard.rows, whole.rows[[5, 2]])
        assert torch.equal(shard.history.loss, whole.history.loss[[5, 2]])
    other = LabelBank.from_labels([0, 1, 2], K, sample_fingerprint="digits")
    with pytest.raises(ValueError, match="another data set"):
        fresh.shard([5, 2]).load_state_dict(other.state_dict())


def test_a_loss_saves_and_restores_a_shard():
    criterion = ALRLoss(workers.new_bank().shard([5, 2]), warmup_epochs=0)
    criterion(torch.randn(1, K, requires_grad=True), [3], [5])
    state = criterion.state_dict()
    assert state["bank.shard_rows"].tolist() == [5, 2]
    other = ALRLoss(workers.new_bank().shard([5, 2]), warmup_epochs=0)
    other.load_state_dict(state)
    assert torch.equal(other.bank.rows, criterion.bank.rows)
    with pytest.raises(RuntimeError, match="has the rows of another process"):
        ALRLoss(workers.new_bank().shard([5, 3]), warmup_epochs=0).load_state_dict(state)


def test_one_process_gathers_its_own_rows():
    whole = workers.new_bank()
    assert whole.gather() is whole
    order = torch.randperm(N)
    shard = whole.shard(order)
    workers.train(shard, range(N))
    workers.train(whole, range(N))
    assert torch.equal(shard.gather().rows, whole.rows)
    with pytest.raises(ValueError, match="row 0 of the bank belongs to 0 of 1 processes"):
        whole.shard([1]).gather()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathered_shards_are_the_bank_of_one_process(dtype):
    alone = workers.new_bank(dtype=dtype)
    workers.train(alone, range(N))
    results = run_group(2, workers.gather_trained, dtype)
    expected = alone.state_dict()
    for result in results:
        assert result["whole"].keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(result["whole"][name], tensor, rtol=1e-6, atol=1e-6)
        assert torch.equal(result["refined"], alone.refined_labels())
    # Another number of processes resumes from it; the state of a shard is refused there.
    again = workers.new_bank(dtype=dtype)
    again.load_state_dict(results[1]["whole"])
    assert torch.equal(again.rows, results[0]["whole"]["rows"])
    if dtype == torch.float32:
        for rows in run_group(3, workers.load_and_gather, results[0]["whole"]):
            assert torch.equal(rows, again.rows)


def test_shards_that_do_not_form_a_bank_are_refused():
    run_group(2, workers.gather_wrong_rows)


def test_banks_that_drift_apart_are_noticed():
    first, second = run_group(2, workers.drift_apart)
    # own_rows, both, both again, both if owned, a bank that was not updated
    assert first[:2] == ["", ""] and first[3:] == ["", ""]  # rank 1 had not compared yet
    assert second[0] == "" and second[3:] == ["", ""]
    expected = "both update row 7 of the label bank and 1 more, each in a bank of its own"
    for message in (second[1], second[2], first[2]):
        assert expected in message
        assert "OwnedRowsSampler(dataset)" in message and "bank.shard(sampler.rows)" in message
        assert "bank.owned = True" in message
    assert "processes 1 and 0" in second[1] and "processes 0 and 1" in first[2]


def test_comparing_waits_for_nobody_and_covers_large_banks():
    run_group(2, workers.check_alone)
    (first, row), (second, _) = run_group(2, workers.large_bank)
    assert not first and row > 0 and f"both update row {row} of" in second
