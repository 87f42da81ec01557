"""Tests of `alr_fast.ALRClassifier`: conventions of scikit-learn, inputs, methods, refinement."""

import pickle
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn", reason="the classifier needs the extra features")

from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from alr_fast import ALRClassifier
from alr_fast.classifier import features
from alr_fast.classifier.estimator import METHODS
from alr_fast.classifier.training import train
from alr_fast.errors import UserError
from alr_fast.losses import CrossEntropyLoss
from alr_fast.noise import inject
from alr_fast.utils.requirements import install_command

quick = partial(ALRClassifier, hidden=16, epochs=12, random_state=0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Small matrices: one thread is faster."""


def blobs(n: int = 300, *, noise: float = 0.2, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features, given labels and true labels of three well separated classes."""
    x, truth = make_blobs(n, 6, centers=3, cluster_std=1.5, random_state=seed)
    given = inject(truth, num_classes=3, kind="symmetric", rate=noise, seed=seed).labels
    return x.astype(np.float32), given, truth


def failing_checks(classifier: ALRClassifier) -> dict[str, str]:
    """Checks of scikit-learn that fail, with the reason."""
    batches = (
        "a weight scales the loss of a sample, a repeated sample also changes the batches and is "
        "refined more often (as with SGDClassifier and MLPClassifier)"
    )
    rounding = "float32: a matrix product of other rows rounds differently in the last digits"
    return {
        "check_sample_weight_equivalence_on_dense_data": batches,
        "check_sample_weight_equivalence_on_sparse_data": batches,
    } | ({"check_methods_subset_invariance": rounding} if classifier.hidden else {})


@parametrize_with_checks(
    [ALRClassifier(hidden=0, epochs=30), ALRClassifier(hidden=32, epochs=30)],
    expected_failed_checks=failing_checks,
)
def test_conventions_of_scikit_learn(estimator, check) -> None:
    check(estimator)


def test_most_labels_of_the_digits_are_refined_to_the_right_ones() -> None:
    x, truth = load_digits(return_X_y=True)
    given = inject(truth, num_classes=10, kind="symmetric", rate=0.4, seed=0).labels
    classifier = ALRClassifier(random_state=0).fit(x, given)
    assert (given == truth).mean() < 0.66
    assert (classifier.refined_labels_ == truth).mean() >= 0.9
    linear = ALRClassifier(hidden=0, random_state=0).fit(x, given)
    assert (linear.refined_labels_ == truth).mean() > 0.85


def test_the_most_suspicious_labels_are_the_wrong_ones() -> None:
    x, given, truth = blobs()
    names = np.array(["ant", "bee", "cat"])
    issues = quick(epochs=40).fit(x, names[given]).label_issues_
    wrong = np.flatnonzero(given != truth)
    assert len(issues) == len(x)
    found = issues.order[: len(wrong)]
    assert len(np.intersect1d(found, wrong)) > 0.9 * len(wrong)
    assert abs(issues.noise_rate - len(wrong) / len(x)) < 0.05
    first = next(iter(issues))
    assert {first["given_name"], first["refined_name"]} <= set(names)


@pytest.mark.parametrize(
    "classes",
    [
        np.array([7, -3, 20]),
        np.array(["ant", "bee", "cat"]),
        np.array(["ant", "bee", "cat"], dtype=object),
        np.array([0.0, 1.0, 2.0]),
    ],
)
def test_labels_of_any_type(classes: np.ndarray) -> None:
    x, given, _ = blobs()
    classifier = quick().fit(x, classes[given])
    assert classifier.classes_.dtype == classes.dtype
    np.testing.assert_array_equal(classifier.classes_, np.sort(classes))
    for labels in (classifier.predict(x), classifier.refined_labels_):
        assert labels.dtype == classes.dtype and set(labels) <= set(classes)
    # The numbers of the classes follow their order, so only the names may differ.
    numbers = quick().fit(x, np.argsort(np.argsort(classes))[given])
    np.testing.assert_array_equal(classifier.predict_proba(x), numbers.predict_proba(x))


def test_two_classes_of_bools() -> None:
    x, given, _ = blobs()
    classifier = quick().fit(x, given == 1)
    assert classifier.predict(x).dtype == bool
    decision, p = classifier.decision_function(x), classifier.predict_proba(x)
    assert decision.shape == (len(x),)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-decision)))
    np.testing.assert_array_equal(decision > 0, classifier.predict(x))


def test_arrays_tensors_lists_and_files_give_the_same_model(tmp_path) -> None:
    x, given, _ = blobs()
    expected = quick().fit(x, given).predict_proba(x)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for other in (torch.from_numpy(x), x.tolist(), np.asfortranarray(x), mapped):
        model = quick().fit(other, torch.from_numpy(given))
        np.testing.assert_allclose(model.predict_proba(other), expected, rtol=1e-4, atol=1e-6)
    half = quick().fit(torch.from_numpy(x).bfloat16(), given)
    assert (half.predict(x) == expected.argmax(1)).mean() > 0.95


def test_a_large_file_is_read_batch_by_batch(tmp_path, monkeypatch) -> None:
    x, given, _ = blobs()
    expected = quick().fit(x, given).predict_proba(x)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(features, "COPY_BYTES", x.nbytes - 1)
    monkeypatch.setattr(features, "DenseFeatures", None)  # would copy all of it
    model = quick().fit(np.load(tmp_path / "x.npy", mmap_mode="r"), given)
    # The order within a batch is that of the file, so sums are rounded differently.
    np.testing.assert_allclose(model.predict_proba(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hidden", [0, 16])
def test_sparse_features_give_the_model_of_dense_ones_that_are_not_scaled(hidden: int) -> None:
    x, given, _ = blobs()
    x = np.maximum(x, 0)
    expected = quick(hidden=hidden, standardize=False).fit(x, given).predict_proba(x)
    for matrix in (sparse.csr_matrix(x), sparse.csc_array(x)):
        model = quick(hidden=hidden).fit(matrix, given)
        np.testing.assert_allclose(model.predict_proba(matrix), expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(model.predict_proba(x), expected, rtol=1e-3, atol=1e-5)


def test_sparse_features_cause_no_warning() -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy as np; from scipy import sparse; from alr_fast import ALRClassifier\n"
        "x = sparse.random(40, 9, 0.5, format='csr', random_state=0)\n"
        "y = np.arange(40) % 2\n"
        "ALRClassifier(hidden=4, epochs=9, random_state=0).fit(x, y).predict(x)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scale_and_offset_of_dense_features_do_not_matter() -> None:
    x, given, _ = blobs()
    expected = quick().fit(x, given).predict_proba(x)
    moved = 1e5 + 1e3 * x.astype(np.float64)
    model = quick().fit(moved, given)
    np.testing.assert_allclose(model.predict_proba(moved), expected, rtol=1e-3, atol=1e-4)
    assert abs(quick(standardize=False).fit(x, given).predict_proba(x) - expected).max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str) -> None:
    x, given, truth = blobs()
    classifier = quick(method=method, epochs=30).fit(x, given)
    assert classifier.score(x, truth) > 0.9
    assert (classifier.refined_labels_ == truth).mean() > (given == truth).mean()
    assert classifier.label_probabilities_.sum(1) == pytest.approx(1, abs=1e-5)
    assert classifier.loss_curve_.shape == (30,) and np.isfinite(classifier.loss_curve_).all()


def test_options_reach_the_loss() -> None:
    x, given, _ = blobs()
    with pytest.warns(UserWarning, match="12 epochs cannot change a label"):
        frozen = quick(loss_options={"momentum": 1.0}).fit(x, given)
    np.testing.assert_array_equal(frozen.refined_labels_, given)
    with pytest.warns(UserWarning, match="12 epochs cannot change a label"):
        warm = quick(warmup_epochs=12).fit(x, given)
    np.testing.assert_array_equal(warm.refined_labels_, given)
    assert (quick().fit(x, given).refined_labels_ != given).any()


def test_weights_of_zero_leave_samples_out_of_the_loss() -> None:
    x, given, truth = blobs(noise=0.6)
    weight = (given == truth).astype(float)
    plain, weighted = quick(method="ce"), quick(method="ce")
    plain.fit(x, given)
    weighted.fit(x, given, sample_weight=weight)
    assert weighted.predict_proba(x)[np.arange(len(x)), truth].mean() > (
        plain.predict_proba(x)[np.arange(len(x)), truth].mean() + 0.2
    )
    scaled = quick(method="ce").fit(x, given, sample_weight=100 * weight)
    np.testing.assert_allclose(
        scaled.predict_proba(x), weighted.predict_proba(x), rtol=1e-4, atol=1e-6
    )


class Net(nn.Module):
    """A model of the user, with dropout."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_features, 16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("module", [Net, Net(6, 3)])
def test_any_module(module) -> None:
    x, given, truth = blobs()
    before = pickle.dumps(module)
    first = quick(module=module, lr=0.05, epochs=30).fit(x, given)
    assert first.score(x, truth) > 0.9
    torch.rand(3)  # the global generator has no influence
    second = clone(first).fit(x, given)
    np.testing.assert_array_equal(first.predict_proba(x), second.predict_proba(x))
    assert pickle.dumps(module) == before
    adam = quick(module=module, optimizer="adam", lr=0.01, epochs=30).fit(x, given)
    assert adam.score(x, truth) > 0.9
    dense = quick(module=module, standardize=False, lr=0.05).fit(x, given)
    thin = quick(module=module, lr=0.05).fit(sparse.csr_matrix(x), given)
    np.testing.assert_allclose(thin.predict_proba(x), dense.predict_proba(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("module", [None, Net])
def test_the_same_seed_gives_the_same_model_and_the_global_generator_is_left_alone(module) -> None:
    x, given, _ = blobs()
    state = torch.get_rng_state()
    first = quick(module=module, lr=0.05).fit(x, given)
    assert torch.equal(torch.get_rng_state(), state)
    again = quick(module=module, lr=0.05).fit(x, given)
    other = quick(module=module, lr=0.05, random_state=1).fit(x, given)
    np.testing.assert_array_equal(first.predict_proba(x), again.predict_proba(x))
    assert (first.predict_proba(x) != other.predict_proba(x)).any()


def test_pipeline_grid_search_and_cross_validation() -> None:
    x, given, truth = blobs()
    pipe = make_pipeline(PCA(4), quick())
    p = cross_val_predict(pipe, x, given, cv=3, method="predict_proba", n_jobs=2)
    assert (p.argmax(1) == truth).mean() > 0.9
    search = GridSearchCV(quick(), {"hidden": [0, 8], "method": ["alr", "ce"]}, cv=2).fit(x, given)
    assert search.best_estimator_.score(x, truth) > 0.9
    assert search.best_params_.keys() == {"hidden", "method"}


def test_pickling_keeps_predictions_and_issues() -> None:
    x, given, _ = blobs()
    classifier = quick().fit(x, given)
    scores = classifier.label_issues_.scores
    copy = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(copy.predict_proba(x), classifier.predict_proba(x))
    np.testing.assert_array_equal(copy.label_issues_.scores, scores)


def test_batches_have_nearly_the_same_size() -> None:
    sizes = []

    class Spy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                sizes.append(len(x))
            return super().forward(x)

    x, given, _ = blobs(101)
    quick(module=Spy, batch_size=25, epochs=1).fit(x, given)
    assert sorted(sizes) == [20, 20, 20, 20, 21]


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"method": "nothing"}, "method 'nothing': must be one of ce, label_smoothing"),
        ({"method": "distillation"}, "method 'distillation': must be one of"),
        ({"optimizer": "lion"}, "optimizer 'lion': must be one of sgd, adam"),
        ({"hidden": -1}, "hidden -1: must be an integer, 0 or more"),
        ({"hidden": 2.5}, "hidden 2.5: must be an integer"),
        ({"epochs": 0}, "epochs 0: must be an integer, 1 or more"),
        ({"batch_size": "many"}, "batch_size 'many': must be an integer"),
        ({"warmup_epochs": True}, "warmup_epochs True: must be an integer"),
        ({"lr": 0}, "lr 0: must be a finite number above 0"),
        ({"lr": float("nan")}, "lr nan: must be"),
        ({"weight_decay": -1}, "weight_decay -1: must be a finite number 0 or more"),
        ({"loss_options": {"speed": 1}}, "loss_options: alr has no option speed; its options: "),
        ({"loss_options": {"bank": 1}}, "loss_options: alr has no option bank"),
        ({"loss_options": {"history": True}}, "loss_options: alr has no option history"),
        (
            {"method": "ce", "loss_options": {"momentum": 0.5}},
            "loss_options: ce has no option momentum; its options: none",
        ),
        ({"loss_options": 3}, "loss_options 3: must be a dict of options, or None"),
        ({"module": 3}, "module 3: must be a torch module"),
        ({"module": nn.Linear(6, 4)}, r"module: maps \[1, 6\] to \[1, 4\]; it must return"),
        ({"module": nn.Linear(5, 3)}, r"module: does not take features \[1, 6\]: mat1 and mat2"),
        ({"device": "moon"}, "device: 'moon' is no device of torch"),
    ],
)
def test_wrong_parameters(parameters: dict, why: str) -> None:
    x, given, _ = blobs()
    classifier = quick(**parameters)
    with pytest.raises(UserError, match=why):
        classifier.fit(x, given)
    with pytest.raises(NotFittedError):
        classifier.predict(x)


@pytest.mark.parametrize("method", ["alr", "ce"])
def test_the_history_is_that_of_the_given_labels(method: str) -> None:
    x, given, _ = blobs()
    torch.manual_seed(0)
    fixed = nn.Linear(6, 3)
    classifier = quick(module=fixed, method=method, lr=1e-12, standardize=False, batch_size=64)
    history = classifier.fit(x, given).label_history_
    with torch.no_grad():
        logits = fixed(torch.from_numpy(x))
    losses = nn.functional.cross_entropy(logits, torch.from_numpy(given), reduction="none")
    np.testing.assert_allclose(history["given_loss"], losses, rtol=1e-4, atol=1e-5)
    if method == "ce":  # the first of 12 epochs, the highest bit: from given labels to predictions
        changed = logits.argmax(1).numpy() != given
        np.testing.assert_array_equal(history["changes"], changed * (1 << 11))


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (np.ones(3), r"sample_weight: shape \(3,\); pass one number for each of the 300"),
        (np.zeros(300), "sample_weight: must be finite numbers, 0 or more, and not all zero"),
        (-np.ones(300), "sample_weight: must be finite"),
        (np.full(300, "heavy"), "sample_weight: no numbers"),
    ],
)
def test_wrong_weights(weight: np.ndarray, why: str) -> None:
    x, given, _ = blobs()
    with pytest.raises(UserError, match=why):
        quick().fit(x, given, sample_weight=weight)


def test_missing_names_are_refused() -> None:
    x, given, _ = blobs()
    names = np.array(["a", "b", "c"], dtype=object)[given]
    names[7] = None
    with pytest.raises(UserError, match=r"y: labels of several types, NoneType, str, .*drop"):
        quick().fit(x, names)


def test_missing_labels_of_pandas_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    x, given, _ = blobs()
    names = pandas.Series(np.array(["a", "b", "c"])[given], dtype="string")
    names[7] = names[9] = pandas.NA
    with pytest.raises(UserError, match="y: has no label in row 7 and 1 more; drop samples"):
        quick().fit(x, names)
    assert quick(epochs=1).fit(x, names.fillna("a")).classes_.tolist() == ["a", "b", "c"]


def test_a_training_that_cannot_change_a_label_is_noticed() -> None:
    x, given, _ = blobs()
    with pytest.warns(UserWarning, match="5 epochs .* 100% the given .* pass epochs 12 or more$"):
        found = quick(epochs=5, warmup_epochs=5).fit(x, given)
    assert (found.refined_labels_ == given).all()
    assert "none has been refined" in found.label_issues_.estimate_problem
    assert "cannot be estimated" not in repr(found.label_issues_)
    momentum = r"pass epochs 8 or more, or loss_options\['momentum'\] 0.87 or less$"
    with pytest.warns(UserWarning, match=momentum):
        found = quick(epochs=6).fit(x, given)
    assert found.label_issues_.given_share == pytest.approx(0.9**5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quick(epochs=8).fit(x, given)
        quick(epochs=6, loss_options={"momentum": 0.87}).fit(x, given)
        quick(epochs=1, method="elr").fit(x, given)
        plain = quick(epochs=1, method="ce").fit(x, given)
    assert (found.label_issues_.given_share, plain.label_issues_.given_share) == (0.9**7, 0)


def test_one_class_and_a_diverging_training_are_refused() -> None:
    x, given, _ = blobs()
    with pytest.raises(UserError, match="y: holds one class"):
        quick().fit(x, np.zeros(len(x), int))
    with pytest.raises(UserError, match=r"lr: the loss of epoch \d+ is"):
        quick(lr=1e30).fit(x, given)


def test_sparse_tensors_are_refused() -> None:
    x, given, _ = blobs()
    tensor = torch.from_numpy(x).to_sparse()
    with pytest.raises(UserError, match="X: is a sparse tensor; pass a SciPy matrix, or tensor"):
        quick().fit(tensor, given)
    with pytest.raises(UserError, match="X: is a sparse tensor"):
        quick().fit(x, given).predict(tensor)


def test_learning_rates_fall_along_a_half_cosine() -> None:
    model = nn.Linear(2, 2)
    rates: list[list[float]] = []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])

    groups = [{"params": [model.weight], "lr": 0.4}, {"params": [model.bias], "lr": 0.8}]
    labels = torch.tensor([0, 1, 0])
    train(
        model,
        Recorded(groups, lr=1.0),
        CrossEntropyLoss(),
        features.DenseFeatures(np.eye(3, 2), None, torch.device("cpu")),
        labels,
        row_weight=None,
        num_classes=2,
        epochs=4,
        batch_size=3,
        generator=torch.Generator(),
    )
    factors = [(1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert np.allclose(rates, [[0.4 * f, 0.8 * f] for f in factors])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    x, given, _ = blobs()
    with pytest.raises(UserError, match="device cuda: no GPU was found: pass 'cpu'"):
        quick(device="cuda").fit(x, given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_model_of_the_cpu() -> None:
    x, given, _ = blobs()
    cpu, gpu = quick().fit(x, given), quick(device="cuda").fit(x, given)
    np.testing.assert_allclose(gpu.predict_proba(x), cpu.predict_proba(x), rtol=1e-2, atol=1e-3)
    assert all(p.device.type == "cpu" for p in gpu.module_.parameters())
    tensor = quick().fit(torch.from_numpy(x).cuda(), given)
    np.testing.assert_array_equal(tensor.predict_proba(x).argmax(1), gpu.predict(x))


def test_the_library_does_not_import_scikit_learn() -> None:
    code = "import alr_fast, sys; assert 'sklearn' not in sys.modules; alr_fast.ALRClassifier"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = "import sys; sys.modules['sklearn'] = None; from alr_fast import ALRClassifier"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    command = install_command(["sklearn"], "features")
    assert f"ImportError: ALRClassifier needs scikit-learn: {command}\n" in result.stderr
