"""A scikit-learn classifier for features with noisy labels: embeddings, tables, texts.

`estimator` has the class, `features` the batches of all kinds of input, `heads` the models and
`training` the loop. Needs scikit-learn (extra ``features``).
"""

from importlib.util import find_spec

if find_spec("sklearn") is None:
    raise ImportError("ALRClassifier needs scikit-learn: pip install 'alr_fast[features]'")

from alr_fast.classifier.estimator import ALRClassifier

__all__ = ["ALRClassifier"]
