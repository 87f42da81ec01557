"""What is known before training: settings with which a method cannot do what it is for."""

from dataclasses import replace

from alr_fast.losses import Loss, refinement_problem
from alr_fast.training.config.schema import Config, starts_from_given
from alr_fast.training.methods import METHODS, build_loss, checked_options, keeps_bank, stand_ins


def advice(config: Config) -> list[str]:
    """Warnings about a run, a line each.

    Args:
        config: Resolved configuration.
    """
    return [line for name in config.methods if (line := _refinement(name, config)) is not None]


def _refinement(name: str, config: Config) -> str | None:
    """Whether a method with a label bank can change a label at all."""
    if not keeps_bank(name):
        return None
    if not (starts_from_given(config) or METHODS[name].bank_at_zero):
        return None

    def make(epochs: int, momentum: float | None) -> Loss:
        options = config.options[name]
        asked = f"{name}.warmup_epochs"
        if asked in config.asked:  # it follows from the epochs
            options = replace(options, warmup_epochs=config.asked[asked])
        if momentum is not None:
            options = replace(options, momentum=momentum)
        options = checked_options(name, options, epochs=epochs)
        return build_loss(name, options, stand_ins(name, 2))

    names = "--optim.epochs", f"--{name}.momentum"
    problem = refinement_problem(make, config.optim.epochs, names=names)
    return None if problem is None else f"{name}: {problem}"
