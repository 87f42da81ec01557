"""The training history and the score of suspicion, compared with manual results and naive loops."""

import math

import numpy as np
import pytest
import torch

from alr_fast.bank.history import COLUMNS, EPOCHS, SampleHistory
from alr_fast.labels.suspicion import (
    SUSPICIOUS,
    NoiseEstimate,
    belief,
    distributions,
    estimate_noise,
    predictions,
    recent_changes,
    row_figures,
    scores,
    shrunk,
)
from alr_fast.noise.transition import confident_counts

CPU = torch.device("cpu")


def log_of(*probabilities):
    """Logits with these softmax probabilities."""
    return torch.tensor(probabilities).log()


def random_bank(samples, classes, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(classes, 0.5), samples).astype(dtype)
    return rows, rng.integers(0, classes, samples)


def test_three_samples_over_three_epochs_by_hand():
    history = SampleHistory(torch.tensor([0, 1, 2]), CPU)
    # In random order, as from a loader; one place of the batch is to be ignored.
    history.add(
        log_of([0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]),
        torch.tensor([2, 0, -1]),
        torch.tensor([2, 0, -1]),
    )
    history.end_epoch(torch.tensor([2, 1, 0]))
    history.add(log_of([0.8, 0.1, 0.1]), torch.tensor([0]), torch.tensor([0]))
    history.end_epoch(torch.tensor([2, 1, 2]))
    history.end_epoch(torch.tensor([0, 1, 2]))

    assert history.passes.tolist() == [2, 0, 1]
    loss = [-math.log(0.1) - math.log(0.8), 0, -math.log(0.25)]
    assert history.loss.tolist() == pytest.approx(loss, abs=1e-6)
    # The last epoch is the lowest bit.
    assert history.changes.tolist() == [0b101, 0, 0b110]
    assert history.refined.tolist() == [0, 1, 2]

    means = history.means()
    assert {name: t.dtype for name, t in means.items()} == COLUMNS
    assert means["given_loss"][0].item() == pytest.approx(loss[0] / 2)
    assert means["given_loss"][2].item() == pytest.approx(loss[2])
    assert math.isnan(means["given_loss"][1])
    assert torch.equal(means["changes"], history.changes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_do_not_count(bad):
    history = SampleHistory(torch.tensor([0, 0, 1]), CPU)
    logits = torch.tensor([[bad, 0.0], [math.log(3), 0.0]])
    history.add(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert history.passes.tolist() == [0, 1, 0]
    assert history.loss.tolist() == pytest.approx([0, -math.log(0.75), 0])


def test_a_single_class_has_no_loss():
    history = SampleHistory(torch.tensor([0, 0]), CPU)
    history.add(torch.tensor([[5.0], [-2.0]]), torch.tensor([0, 0]), torch.tensor([1, 0]))
    assert history.passes.tolist() == [1, 1]
    assert history.loss.tolist() == [0, 0]


def test_half_precision_is_summed_in_float32():
    history = SampleHistory(torch.tensor([1]), CPU)
    for _ in range(3):
        history.add(torch.tensor([[0.0, 1.0]]).half(), torch.tensor([1]), torch.tensor([0]))
    assert history.loss.tolist() == pytest.approx([3 * math.log1p(math.exp(-1))], rel=1e-6)


def test_changes_before_the_last_epochs_are_dropped():
    history = SampleHistory(torch.tensor([0, 0]), CPU)
    history.end_epoch(torch.tensor([1, 0]))
    for _ in range(EPOCHS - 1):
        history.end_epoch(torch.tensor([1, 0]))
    assert history.changes.tolist() == [1 << (EPOCHS - 1), 0]
    history.end_epoch(torch.tensor([1, 1]))
    assert history.changes.tolist() == [0, 1]


def test_tensors_returns_the_tensors_themselves():
    history = SampleHistory(torch.tensor([0, 1]), CPU)
    saved = history.tensors()
    assert set(saved) == {"loss", "passes", "refined", "changes"}
    saved["loss"].fill_(6)
    saved["passes"].fill_(3)
    assert history.means()["given_loss"].tolist() == [2, 2]


def test_samples_with_another_label_start_again():
    history = SampleHistory(torch.tensor([0, 1]), CPU)
    history.add(log_of([0.5, 0.5], [0.5, 0.5]), torch.tensor([0, 1]), torch.tensor([0, 1]))
    history.end_epoch(torch.tensor([1, 1]))
    history.forget(torch.tensor([True, False]))
    assert history.passes.tolist() == [0, 1]
    assert history.loss.tolist() == pytest.approx([0, math.log(2)])
    # The history of the bank stays.
    assert (history.changes.tolist(), history.refined.tolist()) == ([1, 0], [1, 1])


def test_recent_changes_counts_the_last_epochs():
    changes = np.array([0, 0b1, 0b1011, 1 << 9, 1 << 10, (1 << EPOCHS) - 1])
    assert recent_changes(changes).tolist() == [0, 1, 3, 1, 0, 10]
    assert recent_changes(changes, 2).tolist() == [0, 1, 2, 0, 0, 2]
    assert recent_changes(changes, EPOCHS).tolist() == [0, 1, 3, 1, 1, EPOCHS]


def test_figures_of_rows_by_hand():
    rows = np.array(
        [
            [0.2, 0.5, 0.3],
            [0.4, 0.4, 0.2],  # a tie: the lowest class
            [0.0, 0.0, 0.0],  # of early-learning regularisation before its first epoch
            [2.0, 1.0, 1.0],  # not scaled
            [0.0, 0.0, 1.0],
        ]
    )
    given = np.array([2, 1, 1, 2, 2])
    found = row_figures(rows, given)
    assert found["refined_label"].tolist() == [1, 0, 1, 0, 2]
    assert found["given_probability"] == pytest.approx([0.3, 0.4, 1, 0.25, 1])
    assert found["refined_probability"] == pytest.approx([0.5, 0.4, 1, 0.5, 1])
    assert found["margin"] == pytest.approx([-0.2, 0, 1, -0.25, 1])
    entropies = [[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [1], [0.5, 0.25, 0.25], [1]]
    assert found["entropy"] == pytest.approx(
        [-sum(p * math.log(p) for p in row) for row in entropies]
    )
    assert rows[3].tolist() == [2, 1, 1]  # the input is not modified


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_distributions_have_a_sum_of_one(dtype):
    rows = np.array([[0.0, 0.0], [3.0, 1.0], [0.25, 0.25]], dtype=dtype)
    p = distributions(rows, np.array([1, 0, 0]))
    assert p.dtype == np.float32
    assert p.tolist() == [[0, 1], [0.75, 0.25], [0.5, 0.5]]
    assert rows.tolist() == [[0, 0], [3, 1], [0.25, 0.25]]


def test_a_row_of_one_class():
    found = row_figures(np.ones((2, 1)), np.array([0, 0]))
    assert found["margin"].tolist() == [1, 1]
    assert found["entropy"].tolist() == [0, 0]


def test_belief_by_hand():
    p = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], dtype=np.float32)
    given = np.array([1, 1])
    q = belief(p, given, np.array([math.nan, 2.0], dtype=np.float32))
    own = 0.3**0.9 * math.exp(-2) ** 0.1
    assert q[0] == pytest.approx(p[0])  # without a pass the bank alone counts
    assert q[1] == pytest.approx([(1 - own) * 6 / 7, own, (1 - own) / 7])


def test_belief_keeps_a_sum_of_one_and_the_proportions_of_the_others():
    p, given = random_bank(200, 5)
    losses = np.random.default_rng(1).uniform(0, 6, 200).astype(np.float32)
    losses[::7] = np.nan
    q = belief(p, given, losses)
    assert q.sum(1) == pytest.approx(np.ones(200), abs=1e-5)
    for row in range(200):
        others = np.delete(np.arange(5), given[row])
        largest = others[p[row, others].argmax()]
        assert q[row, others] / q[row, largest] == pytest.approx(
            p[row, others] / p[row, largest], rel=1e-4
        )


def naive_confident_counts(p, labels, classes):
    """Northcutt's counts, scaled to the number of samples of each given label."""
    thresholds = []
    for k in range(classes):
        own = [float(row[k]) for row, label in zip(p, labels, strict=True) if label == k]
        thresholds.append(sum(own) / len(own) if own else math.inf)
    joint = [[0] * classes for _ in range(classes)]
    for row, label in zip(p, labels, strict=True):
        among = [k for k in range(classes) if row[k] >= thresholds[k]]
        if among:
            joint[label][max(among, key=lambda k: (row[k], -k))] += 1
    return np.array(
        [
            [count * (list(labels).count(k) / sum(row) if sum(row) else 0) for count in row]
            for k, row in enumerate(joint)
        ]
    )


@pytest.mark.parametrize("left_out", [None, 2])
def test_confident_counts_agree_with_loops_in_any_pieces(left_out):
    p, labels = random_bank(300, 4)
    keep = labels != left_out  # a class without samples
    p, labels = p[keep], labels[keep]
    wanted = naive_confident_counts(p, labels, 4)
    for size in (len(p), 1, 7, 100):
        pieces = [(p[i : i + size], labels[i : i + size]) for i in range(0, len(p), size)]
        assert np.allclose(confident_counts(lambda pieces=pieces: pieces, 4), wanted, rtol=1e-12)
    sizes = np.bincount(labels, minlength=4)
    assert wanted.sum(1) == pytest.approx(sizes)
    assert (wanted[:, 2] > 0).any() == (left_out is None)


def test_a_probability_at_the_threshold_is_confident():
    p, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])  # one sample per class
    assert confident_counts(lambda: [(p, labels)], 2).tolist() == [[1, 0], [0, 1]]


def test_equal_counts_off_the_diagonal_are_not_a_pattern():
    counts = np.full((4, 4), 10.0)
    np.fill_diagonal(counts, 70)
    t, trust = shrunk(counts)
    assert trust == 0
    # Symmetric noise of the rate of the counts, each plus one.
    wrong = 33 / 104
    assert t[~np.eye(4, dtype=bool)] == pytest.approx(np.full(12, wrong / 3))
    assert np.diag(t) == pytest.approx(np.full(4, 1 - wrong))


def test_counts_in_one_cell_of_each_row_are_trusted():
    k = 10
    counts = 600 * np.eye(k) + 400 * np.roll(np.eye(k), 1, axis=1)
    t, trust = shrunk(counts)
    v = 400**2 * (1 / 9 - 1 / 81) / (400 / 9) ** 2 - 9 / 400  # variance and mean by hand
    assert trust == pytest.approx(v**2 / (1 + v**2))
    assert trust > 0.98
    e = (counts + 1) / (1000 + k)
    s = np.full((k, k), (1 - e[0, 0]) / (k - 1))
    np.fill_diagonal(s, e[0, 0])
    assert t == pytest.approx(e ** (0.4 * trust) * s ** (1 - 0.4 * trust))
    assert (t > 0).all()
    assert t[0, 1] > 5 * t[0, 2]


def test_the_variance_of_counting_is_not_a_pattern():
    counts = np.random.default_rng(0).poisson(20, (30, 30)).astype(float)
    np.fill_diagonal(counts, 2000)
    assert shrunk(counts)[1] < 0.01


def test_patterns_of_little_data():
    t, trust = shrunk(np.array([[12.0]]))
    assert (t.tolist(), trust) == ([[1]], 0)
    t, trust = shrunk(np.diag([5.0, 5.0, 5.0]))  # nothing is wrong
    assert trust == 0 and (t > 0).all() and t[0, 0] > 0.7
    # A class without samples is equally likely to become any other.
    counts = np.array([[60.0, 40, 0, 0], [0, 60, 40, 0], [40, 0, 60, 0], [0, 0, 0, 0]])
    t, trust = shrunk(counts)
    assert trust > 0.5 and np.isfinite(t).all() and (t > 0).all()
    assert np.ptp(t[3, :3]) == pytest.approx(0)
    assert t[0, 1] > t[0, 2]


@pytest.mark.parametrize("with_pattern", [True, False])
def test_log_odds_follow_bayes_rule(with_pattern):
    p, given = random_bank(100, 4)
    p[0] = np.eye(4)[given[0]]
    p[1] = 0  # becomes one-hot at the given label
    p[2] *= 7
    losses = np.random.default_rng(2).uniform(0, 5, 100).astype(np.float32)
    losses[5:20] = np.nan
    pattern, _ = shrunk(np.random.default_rng(3).uniform(0, 100, (4, 4)))
    if not with_pattern:
        pattern = np.ones((4, 4))
    by_given = pattern.T.astype(np.float32) if with_pattern else None
    noise = NoiseEstimate(p.argmax(1), 0.5, by_given)
    found = noise.log_odds(p, given, losses)
    assert found.dtype == np.float32
    for row in range(100):
        y, total = int(given[row]), float(p[row].astype(np.float64).sum())
        q = [float(x) / total if total else float(k == y) for k, x in enumerate(p[row])]
        history = q[y] if math.isnan(losses[row]) else math.exp(-float(losses[row]))
        own = q[y] ** 0.9 * history**0.1
        others = [(1 - own) * q[k] / max(1 - q[y], 1e-8) for k in range(4)]
        odds = sum(others[k] * pattern[k, y] for k in range(4) if k != y) + 1e-8
        odds /= own * pattern[y, y] + 1e-8
        assert found[row] == pytest.approx(math.log(odds), abs=2e-3), row


@pytest.mark.parametrize("rate", [0, 0.1, 0.25, 0.5, 0.97, 1])
def test_the_rate_is_the_share_of_scores_above_a_half(rate):
    log_odds = np.random.default_rng(0).normal(-4, 3, 100).astype(np.float32)
    found = scores(log_odds, rate)
    assert (found > SUSPICIOUS).sum() == round(100 * rate)
    assert ((found >= 0) & (found <= 1)).all() and found.dtype == np.float32
    order = np.argsort(log_odds)
    assert (np.diff(found[order]) >= 0).all()
    assert len(np.unique(found)) > 90  # the order is kept, not lost at 0 and 1


def test_scores_by_hand():
    found = scores(np.array([3.0, -1.0, 0.0], dtype=np.float32), 1 / 3)
    assert found == pytest.approx([1 / (1 + math.exp(-x)) for x in (1.5, -2.5, -1.5)])
    assert scores(np.array([2.0], dtype=np.float32), 0.0).tolist() == [0.5]
    assert scores(np.array([], dtype=np.float32), 0.3).tolist() == []


def test_a_label_that_a_rival_often_becomes_is_the_more_suspicious():
    """Class 0 is often labelled 1, class 2 never: the rival 0 is the stronger evidence."""
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], 400)
    given = true.copy()
    given[:160] = 1
    rows = np.full((1200, 3), 0.05) + 0.85 * np.eye(3)[true]
    rows += rng.uniform(0, 0.02, rows.shape)
    # Two samples labelled 1: the rival of the first is 0, of the second 2, which is more probable.
    rows[0], rows[1199] = [0.40, 0.55, 0.05], [0.03, 0.50, 0.47]
    given[1199] = 1
    noise = estimate_noise(lambda: [(rows, given)], 3)
    assert noise.pattern[1, 0] > 3 * noise.pattern[1, 2]
    unknown = np.full(2, np.nan, dtype=np.float32)
    pair = rows[[0, 1199]], given[[0, 1199]]
    wrong, right = noise.log_odds(*pair, unknown)
    assert wrong > right
    plain = 1 - row_figures(*pair)["given_probability"]
    assert plain[0] < plain[1]


def test_estimate_by_hand():
    rows = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.5, 0.5]])
    given = np.array([0, 0, 1, 1, 1])
    noise = estimate_noise(lambda: [(rows, given)], 2)
    assert noise.refined.tolist() == [0, 1, 1, 0, 0]
    assert noise.rate == pytest.approx(3 / 5)
    counts = confident_counts(lambda: [(rows, given)], 2).T
    assert noise.pattern == pytest.approx(shrunk(counts)[0].T)


def test_no_pattern_is_estimated_for_more_than_the_most_classes(monkeypatch):
    rows, given = random_bank(50, 5)
    readings = []

    def pieces():
        readings.append(len(readings))
        return [(rows, given)]

    monkeypatch.setattr("alr_fast.labels.suspicion.MOST_CLASSES", 5)
    assert estimate_noise(pieces, 5).pattern is not None
    monkeypatch.setattr("alr_fast.labels.suspicion.MOST_CLASSES", 4)
    noise = estimate_noise(pieces, 5)
    assert noise.pattern is None and readings == [0, 1, 2]
    assert np.array_equal(noise.refined, rows.argmax(1))
    assert noise.rate == (rows.argmax(1) != given).mean()


def test_estimate_in_pieces_is_that_of_the_whole():
    rows, given = random_bank(100, 6)
    rows[:60] = 0.02 + 0.88 * np.eye(6, dtype=np.float32)[(given[:60] + 1) % 6]
    readings = []

    def pieces():
        readings.append(len(readings))
        return ((rows[i : i + 9], given[i : i + 9]) for i in range(0, 100, 9))

    whole = estimate_noise(lambda: [(rows, given)], 6)
    parts = estimate_noise(pieces, 6)
    assert len(readings) == 2
    assert np.array_equal(parts.refined, whole.refined)
    assert parts.rate == whole.rate
    assert np.array_equal(parts.pattern, whole.pattern)


def test_without_a_pattern_the_bank_is_read_once(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(6), 200).astype(np.float32)
    given = rng.integers(6, size=200)
    readings = []

    def pieces():
        readings.append(1)
        yield rows[:70], given[:70]
        yield rows[70:], given[70:]

    monkeypatch.setattr("alr_fast.labels.suspicion.MOST_CLASSES", 5)
    noise = estimate_noise(pieces, 6)
    assert noise.pattern is None and len(readings) == 1
    assert noise.refined.tolist() == rows.argmax(1).tolist()
    assert noise.rate == (rows.argmax(1) != given).mean()
    unknown = np.full(200, np.nan, dtype=np.float32)
    own = rows[np.arange(200), given]
    found = noise.log_odds(rows, given, unknown)
    assert np.argsort(found).tolist() == np.argsort(-own).tolist()


def test_sums_of_a_corrected_label_start_again():
    history = SampleHistory(torch.tensor([0, 1, 1]), CPU)
    logits = log_of([0.5, 0.5], [0.2, 0.8], [0.9, 0.1])
    history.add(logits, torch.tensor([0, 1, 1]), torch.arange(3))
    before = history.loss.clone()
    history.forget(torch.tensor([False, True, False]))
    assert history.passes.tolist() == [1, 0, 1]
    assert history.loss.tolist() == [before[0], 0, before[2]]


# Rows that still contain the given labels.


def short_bank(share, *, n=600, k=5, wrong=0.3, seed=0, noise=0.15):
    """Rows of a bank after few updates, given and true labels; the predictions are good."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, k, n)
    given = np.where(rng.random(n) < wrong, (true + rng.integers(1, k, n)) % k, true)
    q = rng.dirichlet(np.ones(k), n) * noise
    q[np.arange(n), true] += 1 - noise
    rows = share * np.eye(k)[given] + (1 - share) * q
    return rows.astype(np.float32), given, true, q.astype(np.float32)


@pytest.mark.parametrize("share", [0, 0.005, 0.4, 0.59, 0.999])
def test_the_predictions_in_a_row_by_hand(share):
    rows, given, _, q = short_bank(share)
    rows[0] = np.eye(5)[given[0]]  # never refined
    found = predictions(distributions(rows, given), given, share)
    assert found[1:] == pytest.approx(q[1:], abs=2e-3 if share == 0.999 else 1e-5)
    assert found[0].tolist() == np.eye(5)[given[0]].tolist()
    assert found.sum(1) == pytest.approx(1, abs=1e-3) and found.min() >= 0


def test_predictions_of_a_bank_of_16_bits():
    """Where the given label is 1 after rounding, the other classes are still exact."""
    rows, given, _, q = short_bank(0.999)
    rounded = torch.from_numpy(rows).bfloat16().float().numpy()
    assert (rounded[np.arange(600), given] >= 0.99).all()
    found = predictions(distributions(rounded, given), given, 0.999)
    assert np.abs(found - q).max() < 0.02


@pytest.mark.parametrize("most_classes", [2048, 4])
@pytest.mark.parametrize("share", [0.5, 0.59, 0.9])
def test_the_rate_before_a_label_has_changed(monkeypatch, share, most_classes):
    monkeypatch.setattr("alr_fast.labels.suspicion.MOST_CLASSES", most_classes)
    rows, given, true, _ = short_bank(share)
    wrong = (given != true).mean()
    noise = estimate_noise(lambda: [(rows[:99], given[:99]), (rows[99:], given[99:])], 5, share)
    assert noise.rate == pytest.approx(wrong, abs=0.02) and noise.problem == ""
    assert (noise.joint is None) == (most_classes == 4)
    assert np.array_equal(noise.refined, rows.argmax(1))
    found = scores(noise.log_odds(rows, given, np.full(600, np.nan, np.float32)), noise.rate)
    assert (given != true)[found > SUSPICIOUS].mean() > 0.95


def test_the_rate_of_right_labels_is_zero_before_a_label_can_have_changed():
    rows, given, _, _ = short_bank(0.59, wrong=0)
    noise = estimate_noise(lambda: [(rows, given)], 5, 0.59)
    assert (noise.rate, noise.problem) == (0, "")


def test_the_rate_after_many_epochs_is_the_share_of_refined_labels():
    rows, given, _, _ = short_bank(0.01)
    noise = estimate_noise(lambda: [(rows, given)], 5, 0.01)
    assert noise.rate == (rows.argmax(1) != given).mean() > 0.25 and noise.joint is None


def test_rows_that_contradict_the_share_are_taken_as_they_are():
    rows, given, _, _ = short_bank(0.2)
    as_they_are = estimate_noise(lambda: [(rows, given)], 5, 0)
    noise = estimate_noise(lambda: [(rows, given)], 5, 0.6)  # of fewer updates
    assert noise.given_share == 0 and noise.rate == as_they_are.rate
    one = rows[:1] * 0 + np.float32(0.2)  # a single row, updated more often, changes nothing
    whole = np.concatenate([one, short_bank(0.6)[0][1:]])
    assert estimate_noise(lambda: [(whole, given)], 5, 0.6).given_share == 0.6


@pytest.mark.parametrize("share", [None, 0, 0.5, 1])
def test_rows_of_given_labels_alone_are_no_estimate(share):
    given = np.arange(20) % 4
    for rows in (np.eye(4)[given], np.zeros((20, 4))):
        noise = estimate_noise(lambda rows=rows: [(rows, given)], 4, share)
        assert math.isnan(noise.rate) and "none has been refined" in noise.problem
        assert noise.bare.all()
        found = scores(noise.log_odds(rows, given, np.linspace(0, 1, 20, dtype="f4")), noise.rate)
        assert not (found > SUSPICIOUS).any() and found.argmax() == 19


def test_an_unknown_share_is_no_estimate_unless_a_row_has_less_than_half_of_its_label():
    rows, given, _, _ = short_bank(0.59)
    noise = estimate_noise(lambda: [(rows, given)], 5)
    assert math.isnan(noise.rate) and "too few epochs" in noise.problem
    rows[3] = 0.2
    noise = estimate_noise(lambda: [(rows, given)], 5)
    assert noise.problem == "" and noise.rate == (rows.argmax(1) != given).mean()


@pytest.mark.parametrize("right", [0.0, 0.3, 0.6])
def test_predictions_of_chance_say_nothing_about_the_labels(right):
    """A model that has learnt nothing agrees with few labels, whatever their quality."""
    rng = np.random.default_rng(0)
    guesses, given = random_bank(300, 10)
    known = rng.random(300) < right
    guesses[known] = np.eye(10, dtype=np.float32)[given[known]]
    rows = 0.8 * np.eye(10, dtype=np.float32)[given] + 0.2 * guesses
    noise = estimate_noise(lambda: [(rows, given)], 10, 0.8)
    if right:
        assert noise.problem == ""
        assert noise.rate > 0
    else:
        assert noise.problem.startswith("the predictions agree with the labels hardly more than")
        assert math.isnan(noise.rate)
