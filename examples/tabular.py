"""Rows of a table with noisy labels: breast cancer (569 x 30) and wine (178 x 13).

    python examples/tabular.py

30 % of the training labels are replaced by random ones. Prints the test accuracy, and how many of
the labels that the classifier finds suspicious are wrong.
"""

from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import train_test_split

from alr_fast import ALRClassifier
from alr_fast.noise import inject


def run(load) -> dict[str, float]:
    """Trains on a table with noise, and returns the figures."""
    data = load()
    X, X_test, y, y_test = train_test_split(data.data, data.target, random_state=0)
    noise = inject(y, num_classes=len(data.target_names), kind="symmetric", rate=0.3, seed=0)

    classifier = ALRClassifier(random_state=0).fit(X, noise.labels)
    found = classifier.label_issues_.scores > 0.5

    wrong = noise.labels != y
    return {
        "test accuracy": classifier.score(X_test, y_test),
        "labels right before": float(1 - wrong.mean()),
        "labels right after": float((classifier.refined_labels_ == y).mean()),
        "found": int(found.sum()),
        "of these wrong": int((found & wrong).sum()),
        "wrong in all": int(wrong.sum()),
    }


if __name__ == "__main__":
    for load in (load_breast_cancer, load_wine):
        print(load.__name__.removeprefix("load_"), run(load))
