"""A scikit-learn classifier for features with noisy labels: embeddings, tables, texts.

`estimator` has the class, `features` the batches of all kinds of input, `heads` the models and
`training` the loop. Needs scikit-learn (extra ``features``).
"""

from alr_fast.utils.requirements import install_command, missing_modules

if missing_modules(["sklearn"]):
    command = install_command(["sklearn"], "features")
    raise ImportError(f"ALRClassifier needs scikit-learn: {command}", name="sklearn")

from alr_fast.classifier.estimator import ALRClassifier

__all__ = ["ALRClassifier"]
