"""Hand-made epochs, for the tests of displays and loggers."""

from alr_fast.training.output.records import EpochRecord


def record(epoch: int, method: str = "alr", **changes) -> EpochRecord:
    """An epoch with plausible figures, some replaced by ``changes``."""
    values = {
        "method": method,
        "epoch": epoch,
        "learning_rate": 0.1,
        "train_loss": 0.3888,
        "train_accuracy": 0.658,
        "test_loss": 0.25,
        "test_accuracy": 0.989,
        "second_test_accuracy": None,
        "label_accuracy": 0.98,
        "labels_changed": 0.34,
        "nonfinite_rows": 0,
        "skipped_steps": 0,
        "broken_samples": 0,
        "samples_per_second": 1234.4,
        "seconds": 0.5,
    }
    return EpochRecord(**{**values, **changes})
