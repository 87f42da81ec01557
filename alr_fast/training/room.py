"""Whether a run will find room on the disk and in memory, and links; asked before it trains."""

import contextlib
import os
import resource
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from alr_fast.bank.history import COLUMNS
from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.methods import keeps_bank
from alr_fast.training.sharded_bank import bank_bytes, bank_placement
from alr_fast.utils.system import make_link
from alr_fast.utils.text import readable

_SAMPLE_BYTES = 100  # of a sample in a file, beside its row of the bank: id, labels, path


def check_room(
    config: Config,
    methods: Sequence[str],
    index: SampleIndex,
    model: nn.Module,
    world: World,
    *,
    warn: Callable[[str], None],
) -> None:
    """Checks early that label banks, weights and checkpoints will have room; waits for no process.

    The banks in memory and the files at the end of the run must fit. Checkpoints need not: a run
    continues without them.

    Args:
        config: Resolved configuration.
        methods: Its methods that are still to be trained, one or more.
        index: All training samples.
        model: A model like that of the methods.
        world: The processes.
        warn: Takes a line about what will not work.

    Raises:
        UserError: Wrong placement, too little memory or disk space, too low a limit on files.
    """
    banked = [method for method in methods if keeps_bank(method)]
    needs: dict[Path, dict[str, int]] = defaultdict(dict)
    runs = _existing(config.runs)
    whole = bank_bytes(config.bank, index, len(index))
    if banked:
        own = bank_bytes(config.bank, index, -(-len(index) // world.size))
        if bank_placement(config.bank, own, world).placement == "file":
            needs[_bank_folder(config)]["label bank in training"] = own * world.local_size
    if world.main:
        one = {"weights": _weight_bytes(model)}
        needs[runs]["weights"] = one["weights"] * len(methods)
        if banked:
            one["label bank"] = whole + len(index) * (_SAMPLE_BYTES + 4 * len(COLUMNS))
            needs[runs]["label banks"] = one["label bank"] * len(banked)
        _refuse_large(one)
    for folder, parts in _by_disk(needs).items():
        _refuse_full(folder, parts, config)
    if world.main:
        _check_checkpoints(config, model, runs, needs, whole if banked else 0, warn)
        _check_links(runs, warn)


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _bank_folder(config: Config) -> Path:
    given = config.bank.folder
    if given is not None and not Path(given).is_dir():
        raise UserError(f"--bank.folder {given}: no such folder; make it, or pass another")
    return _existing(given or config.runs)


def _existing(folder: str | Path) -> Path:
    path = Path(folder).absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _by_disk(needs: dict[Path, dict[str, int]]) -> dict[Path, dict[str, int]]:
    """The needs, those of folders on one disk together."""
    together: dict[int, tuple[Path, dict[str, int]]] = {}
    for folder, parts in needs.items():
        together.setdefault(os.stat(folder).st_dev, (folder, {}))[1].update(parts)
    return dict(together.values())


def _refuse_full(folder: Path, parts: dict[str, int], config: Config) -> None:
    free, needed = shutil.disk_usage(folder).free, sum(parts.values())
    if free >= needed:
        return
    largest = max(parts, key=lambda part: parts[part])
    listed = ", ".join(f"{part} {readable(size)}" for part, size in parts.items())
    elsewhere = config.bank.folder is not None and folder == _existing(config.bank.folder)
    half = ", or a 16-bit --bank.dtype" if "bank" in largest else ""
    raise UserError(
        f"--{'bank.folder' if elsewhere else 'runs'} {folder}: has room for {readable(free)}, the "
        f"run needs {readable(needed)} ({listed}); free some space, or pass another folder{half}"
    )


def _refuse_large(files: dict[str, int]) -> None:
    """A limit on the size of files is known before they are written."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(files, key=lambda name: files[name])
    if limit != resource.RLIM_INFINITY and files[largest] > limit:
        raise UserError(
            f"{largest}: a file of {readable(files[largest])}, files may have {readable(limit)}; "
            "raise the limit on the size of files: ulimit -f unlimited"
        )


def _check_checkpoints(
    config: Config,
    model: nn.Module,
    runs: Path,
    needs: dict[Path, dict[str, int]],
    bank: int,
    warn: Callable[[str], None],
) -> None:
    options = config.checkpoint
    if options.minutes is None and options.steps is None:
        return
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    states = 2 if config.optim.optimizer != "sgd" else int(config.optim.sgd_momentum > 0)
    copies = 1 if config.model.ema_decay is None else 2
    one = _weight_bytes(model) * copies + trained * states + bank
    # One more than are kept: an old one is removed when the new one is complete.
    needed = one * (options.keep + 1)
    disk = os.stat(runs).st_dev
    results = sum(
        sum(parts.values()) for folder, parts in needs.items() if os.stat(folder).st_dev == disk
    )
    free = shutil.disk_usage(runs).free - results
    if free < needed:
        warn(
            f"--runs {runs}: has room for {readable(max(free, 0))} of checkpoints, "
            f"{options.keep + 1} of them need {readable(needed)}: some may not be written; free "
            "some space, or pass --checkpoint.keep 1"
        )


def _check_links(runs: Path, warn: Callable[[str], None]) -> None:
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=runs) as folder:
        if not make_link(Path(folder, "link"), "target"):
            warn(
                f"--runs {runs}: this file system has no links, so there will be no link latest; "
                "name runs by their folders"
            )
