"""Label issues from predictions of any origin: arguments, scores, tables."""

import csv
import re

import numpy as np
import pytest
import torch

from alr_fast.errors import UserError
from alr_fast.labels import find_issues
from alr_fast.labels.suspicion import estimate_noise, row_figures, scores

N, K = 60, 4
NAMES = ["cat", "dog", "<b>frog</b>", "newt"]


def problem(seed=0, n=N):
    """Labels, of which every fifth is wrong, and probabilities that mostly know better."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, K, n)
    labels = true.copy()
    labels[::5] = (labels[::5] + 1) % K
    p = rng.dirichlet(np.ones(K), n) * 0.4
    p[np.arange(n), true] += 0.6
    return labels, p.astype(np.float32), true


@pytest.fixture(scope="module")
def issues():
    labels, p, true = problem()
    return find_issues(labels, p, class_names=NAMES, clean_labels=true)


def test_scores_are_those_of_the_probabilities_alone(issues):
    labels, p, _ = problem()
    noise = estimate_noise(lambda: [(p, labels)], K)
    wanted = scores(noise.log_odds(p, labels, np.full(N, np.nan, np.float32)), noise.rate)
    assert np.array_equal(issues.scores, wanted)
    assert issues.scores.dtype == np.float32
    assert issues.noise_rate == (p.argmax(1) != labels).mean()
    assert np.array_equal(issues.refined, p.argmax(1))
    order = sorted(range(N), key=lambda row: (-issues.scores[row], row))
    assert issues.order.tolist() == order
    assert set(issues.order[:12].tolist()) == set(range(0, N, 5))  # the wrong labels come first


def test_a_history_counts_in_the_score():
    labels, p, _ = problem()
    loss = np.linspace(0, 5, N)
    history = {"given_loss": torch.from_numpy(loss), "changes": torch.arange(N)}
    issues = find_issues(labels, p, history)
    noise = estimate_noise(lambda: [(p, labels)], K)
    wanted = scores(noise.log_odds(p, labels, loss.astype(np.float32)), noise.rate)
    assert np.array_equal(issues.scores, wanted)
    columns = issues.columns()
    assert np.array_equal(columns["given_loss"], loss.astype(np.float32))
    assert columns["changes"].tolist() == [bin(k & 1023).count("1") for k in range(N)]


def test_columns(issues):
    labels, p, true = problem()
    columns = issues.columns(soft=True)
    assert list(columns) == [
        *("id", "given_label", "refined_label", "given_name", "refined_name", "score"),
        *("given_probability", "refined_probability", "margin", "entropy", "changes"),
        *("given_loss", "clean_label", "probabilities"),
    ]
    assert np.isnan(columns["given_loss"]).all() and not columns["changes"].any()
    for name, wanted in row_figures(p, labels).items():
        assert np.array_equal(columns[name], wanted)
    assert np.array_equal(columns["clean_label"], true)
    some = np.array([7, 3, 4, 5, 59, 0])
    for name, column in issues.columns(some).items():
        assert list(column) == pytest.approx([columns[name][row] for row in some], nan_ok=True)
    assert np.array_equal(issues.probabilities(some), p[some])
    assert issues.columns(np.array([], dtype=np.int64))["id"].tolist() == []


def test_iteration_is_most_suspicious_first(issues, monkeypatch):
    monkeypatch.setattr("alr_fast.labels.scored._PIECE_ROWS", 7)
    samples = list(issues)
    assert [sample["id"] for sample in samples] == issues.order.tolist()
    assert len(samples) == len(issues) == N
    assert samples[0]["score"] == issues.scores.max()


def as_file(p, tmp_path):
    np.save(tmp_path / "p.npy", p)
    return np.load(tmp_path / "p.npy", mmap_mode="r")


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (lambda p, _: p.tolist(), 1e-6),
        (lambda p, _: p.astype(np.float64), 1e-6),
        (lambda p, _: p.astype(np.float16), 3e-3),
        (as_file, 0),
        (lambda p, _: torch.from_numpy(p), 0),
        (lambda p, _: torch.from_numpy(p).double().requires_grad_(), 1e-6),
        (lambda p, _: torch.from_numpy(p).bfloat16(), 2e-2),
        (lambda p, _: torch.from_numpy(p).half(), 3e-3),
        (lambda p, _: np.asfortranarray(p)[:, :], 0),
    ],
)
def test_probabilities_of_any_type(issues, tmp_path, kind, tolerance):
    labels, p, _ = problem()
    found = find_issues(labels, kind(p, tmp_path))
    assert np.abs(found.probabilities(slice(0, N)) - p).max() <= tolerance
    assert np.abs(found.scores - issues.scores).max() < 0.05


@pytest.mark.parametrize(
    "kind",
    [
        lambda y: y.tolist(),
        lambda y: y[:, None],
        lambda y: y.astype(np.uint8),
        lambda y: torch.from_numpy(y).int()[:, None],
        lambda y: tuple(np.int32(k) for k in y),
    ],
)
def test_labels_of_any_type(issues, kind):
    labels, p, _ = problem()
    found = find_issues(kind(labels), p)
    assert found.labels.dtype == np.int64
    assert np.array_equal(found.scores, issues.scores)


def test_later_changes_of_the_labels_do_not_count():
    labels, p, _ = problem()
    issues = find_issues(labels, p)
    labels[:] = 0
    assert issues.labels.tolist() == problem()[0].tolist()


def changed(p, row, value):
    p = p.copy()
    p[row] = value
    return p


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0.0] * N}, "labels of type torch.float64: must be integers"),
        ({"labels": [True] * N}, "labels of type torch.bool: must be integers"),
        ({"labels": ["a"] * N}, "labels of type list: must be numbers"),
        ({"labels": [[0, 1]] * N}, "labels of shape (60, 2): must have shape [n], one integer"),
        ({"labels": [0] * 59}, "labels: has 59 entries, probabilities has 60 rows; pass one label"),
        ({"labels": [0] * 59 + [4]}, "labels: entry 59 is 4, probabilities has 4 columns: labels"),
        ({"labels": [-1] + [0] * 59}, "labels: entry 0 is -1"),
        ({"clean_labels": [0] * 59 + [4]}, "clean_labels: entry 59 is 4"),
        ({"probabilities": lambda p: p[:, 0]}, "has the shape (60,); pass one row for each"),
        ({"probabilities": lambda p: p[:0]}, "has the shape (0, 4); pass one row"),
        ({"probabilities": lambda p: p.astype(str)}, "probabilities: contains values of type <U"),
        ({"probabilities": lambda p: changed(p, 3, np.nan)}, "row 3 has a NaN or infinite value"),
        ({"probabilities": lambda p: changed(p, 3, [2, -1, 0, 0])}, "row 3 has a negative value"),
        ({"probabilities": lambda p: np.log(p)}, "these look like logits"),
        ({"probabilities": lambda p: p + 5}, "row 0 sums to 21, not to 1; these look like logits"),
        ({"probabilities": lambda p: p * 0.5}, "row 0 sums to 0.5, not to 1; pass the output of a"),
        ({"history": {"given_loss": [0.0] * N}}, "history: has given_loss; it must have"),
        ({"history": 3}, "history: is a int; pass SampleHistory.means()"),
        (
            {"history": {"given_loss": [0.0] * 3, "changes": [0] * N}},
            "history['given_loss']: has the shape (3,); pass one value for each of the 60",
        ),
        ({"class_names": ["a", "b"]}, "class_names: has 2 names, probabilities has 4 columns"),
        ({"class_names": dict(enumerate("abcd"))}, "class_names: is a mapping; pass a list"),
        (
            {"class_names": ["a", "b", "c", "d\ud83d"]},
            "class_names: entry 3 is d\\ud83d, with a lone surrogate",
        ),
        ({"paths": ["\ud83d"] * N}, "paths: entry 0 is \\ud83d, with a lone surrogate"),
        ({"paths": ["a"]}, "paths: has 1 entries for 60 samples"),
        ({"sample_ids": [0] * N}, "sample_ids: contains an id twice"),
        ({"sample_ids": range(-1, N - 1)}, "sample_ids: contains -1; ids must be 0 or above"),
        ({"sample_ids": ["a"] * N}, "sample_ids of type list: must be numbers: a tensor"),
        ({"labels": [0.5] * N}, "convert them with numpy.asarray(labels, dtype=int) if they"),
        ({"sample_ids": range(5)}, "sample_ids: has 5 entries for 60 samples"),
    ],
)  # fmt: skip
def test_wrong_arguments(change, message):
    labels, p, _ = problem()
    arguments = {"labels": labels, "probabilities": p} | change
    if callable(arguments["probabilities"]):
        arguments["probabilities"] = arguments["probabilities"](p)
    if callable(arguments["labels"]):
        arguments["labels"] = arguments["labels"](p)
    with pytest.raises(UserError, match=re.escape(message)):
        find_issues(**arguments)


def test_logits_in_a_late_piece_are_found(monkeypatch):
    monkeypatch.setattr("alr_fast.labels.arguments._CHECKED", 5 * K)
    labels, p, _ = problem()
    with pytest.raises(UserError, match=r"row 58 has a negative value.*softmax"):
        find_issues(labels, changed(p, 58, [3, -3, 1, 2]))


def test_rows_of_zeros_and_of_less_than_one():
    labels, p, _ = problem()
    issues = find_issues(labels, changed(p, 5, 0))
    assert issues.refined[5] == labels[5] and issues.columns()["given_probability"][5] == 1
    found = find_issues(labels, p * 0.3, rows_may_sum_to_less=True)
    assert np.allclose(found.scores, find_issues(labels, p).scores, atol=1e-5)
    with pytest.raises(UserError, match=r"row 0 sums to 3"):
        find_issues(labels, p * 3, rows_may_sum_to_less=True)


def test_small_pieces_give_the_same(tmp_path, monkeypatch, issues):
    issues.to_csv(tmp_path / "a.csv", soft=True)
    monkeypatch.setattr("alr_fast.labels.scored._PIECE_ROWS", 7)
    labels, p, true = problem()
    again = find_issues(labels, p, class_names=NAMES, clean_labels=true)
    again.to_csv(tmp_path / "b.csv", soft=True)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_tables(tmp_path, issues):
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    issues.to_csv(tmp_path / "a.csv")
    issues.to_parquet(tmp_path / "a.parquet", soft=True)
    frame = issues.to_pandas(soft=True)
    assert frame["id"].tolist() == issues.order.tolist()
    assert frame[[f"p{k}" for k in range(K)]].to_numpy() == pytest.approx(
        issues.columns(issues.order, soft=True)["probabilities"]
    )
    table = parquet.read_table(tmp_path / "a.parquet").to_pandas()
    shared = [name for name in table if name != "probabilities"]
    pandas.testing.assert_frame_equal(table[shared], frame[shared], check_dtype=False)
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["id"]) for line in lines] == issues.order.tolist()
    assert [line["given_name"] for line in lines] == frame["given_name"].tolist()
    issues.to_csv(tmp_path / "a.csv", most_suspicious_first=False)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [int(line["id"]) for line in csv.DictReader(file)] == list(range(N))
    assert issues.to_pandas(most_suspicious_first=False)["id"].tolist() == list(range(N))


def test_ids_and_paths(tmp_path):
    labels, p, _ = problem()
    ids = np.arange(N)[::-1] + 100
    issues = find_issues(labels, p, paths=[f"a/{k}.png" for k in ids], sample_ids=ids)
    first = next(iter(issues))
    assert first["path"] == f"a/{first['id']}.png"
    assert first["id"] == ids[issues.order[0]]
    # Equal scores are ordered by id.
    even = find_issues([0, 0, 0], np.full((3, 2), 0.5), sample_ids=[5, 3, 4])
    assert even.order.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, d: i.to_csv(d / "a.txt"), "name a file that ends with .csv"),
        (lambda i, d: i.to_parquet(d / "a.csv"), "name a file that ends with .parquet"),
        (lambda i, d: i.to_csv(d / "no" / "a.csv"), "No such file or directory"),
        (lambda i, d: i.report(d / "a.html", most=20_001), "most 20001: must lie between 0 and"),
        (lambda i, d: i.report(d / "a.html", most=1.5), "most 1.5: must lie between 0 and"),
        (lambda i, d: i.report(d / "a.html", most=None), "most: must lie between 0 and"),
        (lambda i, d: i.report(d / "no" / "a.html"), "no folder"),
    ],
)
def test_wrong_outputs(tmp_path, issues, call, message):
    with pytest.raises(UserError, match=message):
        call(issues, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path, issues, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call, name in (
        (issues.to_pandas, "pip install pandas"),
        (lambda: issues.to_parquet(tmp_path / "a.parquet"), "pip install 'pyarrow>="),
        (lambda: issues.report(tmp_path / "a.html"), "pip install 'jinja2>=.*' 'plotly>="),
    ):
        with pytest.raises(UserError, match=name):
            call()
    assert list(tmp_path.iterdir()) == []


def test_text_of_the_object(issues):
    lines = repr(issues).splitlines()
    rate = f"{100 * issues.noise_rate:.1f}%"
    assert lines[0] == (
        f"LabelIssues: 60 samples in 4 classes, estimated noise rate {rate}, 12 suspicious"
    )
    assert lines[1].split() == ["id", "given", "refined", "score"]
    assert [int(line.split()[0]) for line in lines[2:]] == issues.order[:5].tolist()
    page = issues._repr_html_()
    assert "<b>frog" not in page and "&lt;b&gt;frog" in page


def test_rows_that_may_be_those_of_a_short_training_are_no_all_clear():
    labels, _, _ = problem()
    p = np.full((N, K), 0.1)
    p[np.arange(N), labels] = 0.7
    issues = find_issues(labels, p)
    assert np.isnan(issues.noise_rate) and issues.transition is None and issues.suspicious == 0
    title = repr(issues).splitlines()[0]
    assert title.startswith("LabelIssues: 60 samples in 4 classes, noise rate not estimated: every")
    assert "suspicious" not in title and len(repr(issues).splitlines()) == 7
    predictions = find_issues(labels, p, given_share=0)
    assert predictions.noise_rate == 0 and predictions.estimate_problem == ""
    assert np.array_equal(issues.order, predictions.order)
    p[7] = 0.1 + 0.6 * np.eye(K)[(labels[7] + 1) % K]
    assert find_issues(labels, p).noise_rate == 1 / N


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan"), "much"])
def test_a_share_that_is_none(share):
    with pytest.raises(UserError, match=r"given_share .*: must be a number from 0 to 1, or None"):
        find_issues([0, 1], np.eye(2), given_share=share)


def test_a_single_class_and_a_single_sample():
    issues = find_issues([0], [[1.0]])
    assert issues.noise_rate == 0 and issues.scores.tolist() == pytest.approx([0.5])
    assert "1 sample in 1 class," in repr(issues)


def test_the_transition_matrix(issues):
    labels, p, _ = problem()
    counts = np.zeros((K, K))
    np.add.at(counts, (p.argmax(1), labels), 1)
    assert issues.transition == pytest.approx(counts / counts.sum(1, keepdims=True))
