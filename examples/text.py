"""Texts with noisy labels: which library does a docstring belong to?

    python examples/text.py

The texts are docstrings of numpy, SciPy, scikit-learn and torch, without the names of the
libraries: as sparse term frequencies (TF-IDF), and as averages of the word vectors that ship in the
package wordllama. 30 % of the training labels are replaced by random ones. Prints the test
accuracy, and how many of the labels that the classifier finds suspicious are wrong.
"""

import inspect
import re
from pathlib import Path

import numpy
import scipy.signal
import scipy.sparse
import scipy.special
import scipy.stats
import sklearn.datasets
import sklearn.metrics
import torch.nn.functional
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split

from alr_fast import ALRClassifier
from alr_fast.noise import inject

LIBRARIES = {
    "numpy": [numpy, numpy.linalg, numpy.random, numpy.fft],
    "scipy": [scipy.signal, scipy.special, scipy.stats],
    "sklearn": [sklearn.metrics, sklearn.datasets],
    "torch": [torch, torch.nn.functional, torch.linalg],
}
NAMES = re.compile(r"(?i)numpy|scipy|sklearn|scikit-learn|torch|np\.|tensor\w*|\{[^{}]*\}|>>>.*")


def docstrings() -> tuple[list[str], list[str]]:
    """Texts without the names of the libraries, and the library of each."""
    texts = {}
    for library, modules in LIBRARIES.items():
        for module in modules:
            for name in sorted(vars(module)):
                # Without examples and sets, whose order and random numbers differ by process.
                text = (inspect.getdoc(getattr(module, name)) or "").split("\nExample")[0]
                if not name.startswith("_") and len(text) > 100:
                    texts.setdefault(NAMES.sub("", text), library)
    return list(texts), list(texts.values())


def term_frequencies(texts: list[str]) -> scipy.sparse.csr_matrix:
    """Sparse features [N, D]."""
    return TfidfVectorizer(sublinear_tf=True, max_features=4000).fit_transform(texts)


def word_vectors(texts: list[str]) -> numpy.ndarray:
    """Float32 embeddings [N, 256]."""
    import wordllama

    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True).embed(texts)


def run(embed) -> dict[str, float]:
    """Trains on texts with noise, and returns the figures."""
    texts, libraries = docstrings()
    names, truth = numpy.unique(libraries, return_inverse=True)
    X, X_test, y, y_test = train_test_split(embed(texts), truth, random_state=0)
    noise = inject(y, num_classes=len(names), kind="symmetric", rate=0.3, seed=0)

    classifier = ALRClassifier(hidden=64, random_state=0).fit(X, names[noise.labels])
    found = classifier.label_issues_.scores > 0.5

    wrong = noise.labels != y
    return {
        "test accuracy": classifier.score(X_test, names[y_test]),
        "labels right before": float(1 - wrong.mean()),
        "labels right after": float((classifier.refined_labels_ == names[y]).mean()),
        "found": int(found.sum()),
        "of these wrong": int((found & wrong).sum()),
        "wrong in all": int(wrong.sum()),
    }


if __name__ == "__main__":
    for embed in (term_frequencies, word_vectors):
        print(embed.__name__, run(embed))
