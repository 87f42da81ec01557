"""When a run writes a checkpoint, and how a method is restored from one."""

from alr_fast.training.config.schema import Config
from alr_fast.training.trainer import Trainer


def steps_due(trainer: Trainer, config: Config) -> bool:
    """Whether a checkpoint is due by the number of steps."""
    every = config.checkpoint.steps
    return every is not None and trainer.steps_made % every == 0
