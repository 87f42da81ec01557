"""Writes benchmarks/README.md and its plot from the rows in benchmarks/results.

    python -m benchmarks.report

Of each benchmark on each device the latest file counts. The same rows give the same files.
"""

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from benchmarks.harness.results import FOLDER, latest
from benchmarks.tables.accuracy import SECTIONS as ACCURACY_SECTIONS
from benchmarks.tables.accuracy import plot_accuracy
from benchmarks.tables.kernels import (
    PLOT,
    _bandwidth,
    _fused_vs_reference,
    _host_cost,
    _latency,
    _pinned,
    _plot,
)
from benchmarks.tables.loading import LOADING_PLOT, _index, _loading, _plot_loading
from benchmarks.tables.markdown import NOT_MEASURED
from benchmarks.tables.markdown import markdown as _table
from benchmarks.tables.suspects import SECTIONS as SUSPECTS_SECTIONS
from benchmarks.tables.training import SECTIONS as TRAINING_SECTIONS

_INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks.report` from the rows in [results](results): run that instead of
editing this file. What has no rows is given as "not measured". Times are medians in microseconds
if not said otherwise, with the 20th and 80th percentile in brackets; the rows hold more.
"""
_COMMANDS = (
    (
        "`python -m benchmarks.fused_vs_reference`",
        "forward + backward on the CPU, beside eager and compiled reference and a copy",
    ),
    (
        "`python -m benchmarks.kernels`",
        "the GPU tables: latency, bandwidth, bank in pinned memory; `--suite` runs one of them",
    ),
    (
        "`python -m benchmarks.host_cost`",
        "where the host's microseconds of a small step go, beside a native operation",
    ),
    (
        "`python -m benchmarks.loading`",
        "images per second of the loaders beside others, and a list of millions of samples",
    ),
    (
        "`python -m benchmarks.train_step`",
        "a whole training step: what ALR costs over cross entropy, and the trainer itself",
    ),
    (
        "`python -m benchmarks.scaling`",
        "processes together, a label bank from its making to its export, the operation over N, K, "
        "B; `--large` for 9.6 GB",
    ),
    (
        "`python -m benchmarks.accuracy`",
        "test accuracy of all methods under label noise; `--suite` chooses data and net",
    ),
    (
        "`python -m benchmarks.study`",
        "what ALR's settings do, on samples put aside; `--suite` as above",
    ),
    (
        "`python -m benchmarks.transitions`",
        "how far estimated transition matrices are from the noise that was injected",
    ),
    (
        "`python -m benchmarks.suspects`",
        "how well wrong labels are found, beside cleanlab; `--suite` as above",
    ),
    (
        "`python -m benchmarks.figures`",
        "nothing: draws what runs of the trainer have written down",
    ),
    ("`python -m benchmarks.report`", "nothing: makes this file"),
    ("`make bench`", "the CPU shapes under pytest-benchmark; leaves no rows"),
    (
        "`scripts/gpu_check.sh`",
        "build, tests, compute-sanitizer, the GPU tables and this file, on a machine with a GPU",
    ),
)
# Suites of commands of their own, which run on a CPU as well.
_COMMAND_OF = {
    "fused_vs_reference": "fused_vs_reference",
    "host_cost": "host_cost",
    "loading": "loading",
    "index": "loading",
    "train_step": "train_step",
    "ranks": "scaling",
    "bank": "scaling",
    "step_cost": "scaling",
    "accuracy_digits": "accuracy --suite digits",
    "accuracy_cifar10": "accuracy --suite cifar10 --data-root DIR",
    "accuracy_cifar10-small": "accuracy --suite cifar10-small --data-root DIR",
    "study_digits": "study --suite digits",
    "study_cifar10": "study --suite cifar10 --data-root DIR",
    "transitions": "transitions",
    "suspects_digits": "suspects --suite digits",
    "suspects_cifar10-small": "suspects --suite cifar10-small --data-root DIR",
    "suspects_cifar10": "suspects --suite cifar10 --data-root DIR",
}
_PRACTICE = """\
Each of the first ten leaves a file named after device, date and commit and overwrites none; the
tables show the latest. Before any timing, loss, gradient and bank of every variant are compared
with the reference in float64, whole training steps with each other. The variants take turns.
"""
_VARIANTS = (
    ("`fused`", "`alr_loss` of alr_fast and `backward`, distinct indices promised"),
    (
        "`fused_forward`",
        "its forward pass alone, in which the gradient is computed and the bank updated",
    ),
    ("`fused_forward_any_index`", "the same without the promise"),
    ("`fused_and_grad`", "`alr_loss_and_grad`"),
    ("`eager`", "`alr_fast.reference`, whose masks make the host wait for the device"),
    ("`plain`", "the operation written by hand without masks, eager"),
    (
        "best compiled",
        "the fastest of `torch.compile` of the reference (modes default, "
        "max-autotune-no-cudagraphs, reduce-overhead) and of `plain` (default mode)",
    ),
    (
        "Triton",
        "the operation in Triton: loss and gradient in one kernel, bank in a second, scaling in a "
        "third; the faster of holding a row and of looping over it",
    ),
    ("copy", "as many bytes as the fused pass has to move at least: two reads, two writes"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results-dir", type=Path, default=FOLDER, help="where the rows are")
    parser.add_argument(
        "--out", type=Path, default=FOLDER.parent / "README.md", help="the file to write"
    )
    arguments = parser.parse_args(argv)
    if not arguments.results_dir.is_dir():
        parser.error(f"there is no folder {arguments.results_dir}: name the one that has the rows")
    found = latest(arguments.results_dir)
    plotted = []
    for suite, (name, _, draw) in _PLOTS.items():
        plot = arguments.out.with_name(name)
        if draw(plot, [(device, rows) for device, _, rows in _of(found, suite)]):
            plotted.append(suite)
        else:
            plot.unlink(missing_ok=True)  # else the plot of other rows would stay
    arguments.out.write_text(report(found, plotted), encoding="utf-8")
    written = (arguments.out, *(arguments.out.with_name(_PLOTS[suite][0]) for suite in plotted))
    print(f"wrote {' and '.join(map(str, written))}")


def report(
    found: dict[tuple[str, str], tuple[str, list[dict]]], plotted: Collection[str] = ()
) -> str:
    """The file, in Markdown.

    Args:
        found: What `results.latest` returns.
        plotted: Suites that there are plots of.
    """
    parts = [
        _INTRODUCTION,
        _table(("command", "measures"), _COMMANDS),
        _PRACTICE,
        _table(("variant", "is"), _VARIANTS),
    ]
    for suite, (title, note, make) in _SECTIONS.items():
        parts.append(f"## {title}\n\n{note}\n")
        parts += [
            f"{_source(suite, name, rows)}\n\n{make(rows)}" for _, name, rows in _of(found, suite)
        ] or [f"{NOT_MEASURED}\n"]
        if suite in plotted:
            name, what, _ = _PLOTS[suite]
            parts.append(f"![{what}]({name})\n")
    return "\n".join(parts)


def _of(found: dict, suite: str) -> list[tuple[str, str, list[dict]]]:
    """(device, file, rows) of a suite; of those of the kernels, where the device is a GPU."""
    return [
        (device, file, rows)
        for (device, name), (file, rows) in found.items()
        if name == suite and (suite in _COMMAND_OF or rows[0]["environment"]["gpu"])
    ]


def _source(suite: str, name: str, rows: list[dict]) -> str:
    """Where a table's figures come from."""
    facts = rows[0]["environment"]
    shown = [f"**{facts['gpu'] or facts['cpu']}**"]
    if facts["gpu"]:
        shown += [f"driver {facts['driver']}", f"CUDA {facts['cuda']}"]
    else:
        shown += [f"{facts['threads']} threads of {facts['cpus']} CPUs", f"{facts['cpu_isa']}"]
    shown += [f"torch {facts['torch']}"]
    if facts["triton"]:
        shown.append(f"Triton {facts['triton']}")
    shown += [f"alr_fast {facts['alr_fast']}", f"{facts['date'][:10]}", f"commit {facts['commit']}"]
    command = _COMMAND_OF.get(suite, f"kernels --suite {suite}")
    if suite in _COMMAND_OF and facts["gpu"]:
        command += " --device cuda"
    return f"{', '.join(shown)}; `python -m benchmarks.{command}`; [{name}](results/{name})"


_SECTIONS: dict[str, tuple[str, str, Callable[[list[dict]], str]]] = {
    "fused_vs_reference": (
        "Forward and backward on the CPU",
        "Milliseconds through autograd (`fused_and_grad`: without), and how many times slower than "
        "`fused`.",
        _fused_vs_reference,
    ),
    "host_cost": (
        "Host time of a small step",
        "B = 256, K = 14, float32; on the CPU with one thread, where the operator's own work is in "
        "it. The goal is 1.5 times the native step.",
        _host_cost,
    ),
    "latency": (
        "Latency on a GPU",
        "Batches as in training with noisy labels: forward + backward (`fused_and_grad`: forward + "
        "gradient), float32.",
        _latency,
    ),
    "bandwidth": (
        "Bandwidth on a GPU",
        "B * K of at least 1e7, a bank of 1 GB, fresh distinct indices each call. Cells: share of "
        "the copy's speed, and time. `fused_forward*` are forward passes, `fused_and_grad` is "
        "forward + gradient, all others are forward + backward. The goal is for `fused_forward`.",
        _bandwidth,
    ),
    "pinned": (
        "A bank in pinned host memory",
        "Logits on the GPU, float32. The copies move as many bytes as the bank rows of a step "
        "between pinned buffers and the device, each way: one after the other, or on two streams. "
        "GB/s count both ways.",
        _pinned,
    ),
    **TRAINING_SECTIONS,
    **ACCURACY_SECTIONS,
    **SUSPECTS_SECTIONS,
    "loading": (
        "Loading",
        "Photographs as JPEG, made by the command, -> random resized crop, mirrored, normalised, "
        "channels last, on the training device; small images from memory. Images per second in the "
        "steady state, without the start of an epoch, files in the page cache; medians over turns. "
        "CPU ms count all threads and workers. Auto: what a run takes by itself. Whole decoding "
        "and the small images give other batches, so they have no ratio.",
        _loading,
    ),
    "index": (
        "A list of millions of samples",
        "WebVision's lists, read for the first time (and put into the cache), opened from the "
        "cache, and seen by a worker process that has looked at 1,000 paths. Peak: how far the "
        "resident memory of a fresh process rises above what it was after imports; private: what "
        "a forked DataLoader worker shares with no other process. Files in the page cache.",
        _index,
    ),
}


# Suite -> file, what it shows, and what draws it.
_PLOTS: dict[str, tuple[str, str, Callable[[Path, list[tuple[str, list[dict]]]], bool]]] = {
    "bandwidth": (PLOT, "GB/s of ideal bytes against K", _plot),
    "loading": (LOADING_PLOT, "photographs per second of each loader", _plot_loading),
    **{
        suite: (f"{suite.replace('_', '-')}.png", f"{title}: last epoch", plot_accuracy)
        for suite, (title, _, _) in ACCURACY_SECTIONS.items()
        if suite.startswith("accuracy")
    },
}


if __name__ == "__main__":
    main()
