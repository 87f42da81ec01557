"""Writes benchmarks/README.md and its plot from the rows in benchmarks/results.

    python -m benchmarks.report

Of each benchmark on each device the latest file counts. The same rows give the same files.
"""

import argparse
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from benchmarks.host_cost import PARTS
from benchmarks.loading import to_baseline
from benchmarks.loading_variants import BASELINE
from benchmarks.report_accuracy import SECTIONS as ACCURACY_SECTIONS
from benchmarks.report_accuracy import plot_accuracy
from benchmarks.report_suspects import SECTIONS as SUSPECTS_SECTIONS
from benchmarks.report_training import SECTIONS as TRAINING_SECTIONS
from benchmarks.results import FOLDER, latest
from benchmarks.tables import NOT_MEASURED
from benchmarks.tables import markdown as _table

PLOT = "roofline.png"
LOADING_PLOT = "loading.png"

# What the fused forward pass is to reach, as a share of the copy: from this K on.
GOALS = {4096: 0.90, 1000: 0.80, 256: 0.55}

# What loading is to reach: the loader that a run takes by itself, to the baseline and to the
# fastest other one of the same source and batches; the loader for small images.
BASELINE_GOAL, FASTEST_GOAL, MEMORY_GOAL = 1.3, 0.95, 50_000
# Of the index: (case, key of the row, limit, in words).
INDEX_GOALS = (
    ("from the cache", "seconds", 2, "seconds to open"),
    ("from the cache", "peak_megabytes", 500, "MB to open"),
    ("worker", "private_megabytes", 50, "MB of a worker's own"),
)

_COMPILED = ("compiled", "compiled_plain", "compiled_max-autotune-no-cudagraphs",
             "compiled_reduce-overhead")  # fmt: skip
_TRITON = ("triton", "triton_loop")

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


def _fused_vs_reference(rows: list[dict]) -> str:
    def cell(row: dict, variant: str) -> str:
        low, high = row[f"{variant}_p20_p80_ms"]
        shown = f"{row[f'{variant}_ms']:.3f} ({low:.3f}-{high:.3f})"
        if variant in ("eager", "compiled"):
            shown += f", {row[f'{variant}_ms'] / row['fused_ms']:.1f}x"
        return shown

    variants = ("fused", "fused_and_grad", "eager", "compiled", "copy")
    return _table(
        ("B x K", "dtype", *variants),
        (
            (f"{row['batch']} x {row['classes']}", row["dtype"], *(cell(row, v) for v in variants))
            for row in rows
        ),
    )


def _host_cost(rows: list[dict]) -> str:
    return _table(
        ("part", "is", "microseconds", "of the native step"),
        (
            (row["variant"], PARTS[row["variant"]], _time(row), f"{row['times_native']:.2f}")
            for row in rows
        ),
    )


def _latency(rows: list[dict]) -> str:
    called, captured, alone = (_mode(rows, m) for m in ("eager call", "CUDA graph", "kernel alone"))
    shapes = sorted({(row["classes"], row["batch"]) for row in rows})

    def cells(table: dict, shape: tuple[int, int], *columns: Sequence[str]) -> list[str]:
        return [_time(_best(table.get(shape, {}), names)) for names in columns]

    columns = (["fused"], ["fused_and_grad"], ["eager"], ["plain"], _COMPILED, _TRITON)
    names = ("fused", "fused_and_grad", "eager", "plain", "best compiled", "Triton")
    eager = _table(
        ("B", "K", *names),
        ((str(b), str(k), *cells(called, (k, b), *columns)) for k, b in shapes),
    )
    host = _table(
        ("B", "K", "fused", "fused_and_grad", "one native operation"),
        (
            (
                str(b),
                str(k),
                *(
                    _number(called.get((k, b), {}).get(variant), "host_p50_us")
                    for variant in ("fused", "fused_and_grad", "native_one_op")
                ),
            )
            for k, b in shapes
        ),
    )
    graph = _table(
        ("B", "K", "fused", "fused_and_grad", "plain", "Triton", "forward kernel alone"),
        (
            (
                str(b),
                str(k),
                *cells(captured, (k, b), ["fused"], ["fused_and_grad"], ["plain"], _TRITON),
                *cells(alone, (k, b), ["fused_forward"]),
            )
            for k, b in shapes
        ),
    )
    launches = _table(
        ("B", "K", *names),
        (
            (
                str(b),
                str(k),
                *(_number(_best(called.get((k, b), {}), c), "launches") for c in columns),
            )
            for k, b in shapes
        ),
    )
    return "\n".join(
        (
            f"Called one after the other, until the device is done:\n\n{eager}",
            f"What the host takes for a call:\n\n{host}",
            f"In a CUDA graph of many steps, and the device's time in the kernel:\n\n{graph}",
            f"Kernels a step:\n\n{launches}",
            _left_out(rows),
        )
    )


def _bandwidth(rows: list[dict]) -> str:
    lines = []
    for (classes, batch, logits, bank), variants in _shapes(rows).items():
        forward = variants.get("fused_forward")
        copy = variants.get("copy")
        cells = [
            str(batch),
            str(classes),
            logits if logits == bank else f"{logits}, bank {bank}",
            f"{copy['gigabytes_per_second']:.0f} GB/s ({copy['p50_us']:.1f})"
            if copy
            else NOT_MEASURED,
            _share(forward),
            _goal(classes, forward),
        ]
        for names in (
            ["fused_forward_any_index"], ["fused_and_grad"], ["fused"], _TRITON, _COMPILED,
            ["plain"], ["eager"],
        ):  # fmt: skip
            cells.append(_share(_best(variants, names)))
        lines.append(cells)
    names = ("B", "K", "dtype", "copy", "fused_forward", "goal", "fused_forward_any_index",
             "fused_and_grad", "fused", "Triton", "best compiled", "plain", "eager")  # fmt: skip
    return f"{_table(names, lines)}\n{_left_out(rows)}"


def _pinned(rows: list[dict]) -> str:
    lines = (
        (
            f"{row['batch']} x {row['classes']}",
            row["variant"],
            row["what"],
            _time(row),
            f"{row['gigabytes_per_second']:.1f}",
            f"{row['share_of_copy']:.0%}",
        )
        for row in _measured(rows)
    )
    names = ("B x K", "variant", "does", "time", "GB/s", "share of the faster copy")
    return f"{_table(names, lines)}\n{_left_out(rows)}"


def _loading(rows: list[dict]) -> str:
    measured = {row["loader"]: row for row in _measured(rows)}
    ratios = to_baseline(rows)
    lines = []
    for name, row in measured.items():
        low, high = row["images_per_second_p20"], row["images_per_second_p80"]
        lines.append(
            (
                f"`{name}`" + (" (auto)" if row["auto"] else ""),
                row["what"],
                row["source"],
                f"{row['images_per_second']:,.0f} ({low:,.0f}-{high:,.0f})",
                f"{row['cpu_ms_per_image']:.3f}",
                f"{ratios[name]:.2f}x" if name in ratios else "",
            )
        )
    names = ("loader", "is", "source", "images/s", "CPU ms an image", f"to `{BASELINE}`")
    goals = []
    for name, row in measured.items():
        # Those that give what the baseline gives: the others have no ratio.
        if row["auto"] and name in ratios:
            goal = f"`{name}` (auto) to `{BASELINE}`"
            goals.append(_least(goal, BASELINE_GOAL, ratios[name], "x"))
            others = {
                other: row["images_per_second"] / found["images_per_second"]
                for other, found in measured.items()
                if other != name
                and (found["source"], found["output"]) == (row["source"], row["output"])
            }
            fastest = min(others, key=others.get, default=None)
            what = f"the fastest other one of {row['source']}"
            if fastest is not None:
                goal = f"`{name}` (auto) to {what}, `{fastest}`"
                goals.append(_least(goal, FASTEST_GOAL, others[fastest], "x"))
    if not goals:
        goals.append((f"auto to `{BASELINE}`", f"≥ {BASELINE_GOAL:g}x", NOT_MEASURED, ""))
    memory = measured.get("memory", {}).get("images_per_second")
    goals.append(_least("`memory`, images/s", MEMORY_GOAL, memory))
    sources = {(row["source"], row["files"], row["bytes_per_file"]) for row in measured.values()}
    threads = sorted({row["threads"] for row in measured.values()})
    facts = rows[0]["environment"]
    used = [
        f"threads or workers of each: {', '.join(map(str, threads)) or NOT_MEASURED}",
        f"{facts['cpus']} CPUs ({facts['cpu']})",
        *(f"{name} {facts[name]}" for name in ("dali", "torchvision", "pillow") if facts.get(name)),
        *(f"{s}: {n:,} of {b / 1e3:.1f} kB on average" for s, n, b in sorted(sources)),
    ]
    return "\n".join(
        (
            _table(names, lines),
            "".join(f"- {line}\n" for line in used),
            _table(("goal", "wanted", "found", ""), goals),
            "".join(
                f"- `{r['loader']}` left out: {r['skipped']}\n" for r in rows if "skipped" in r
            ),
        )
    )


def _index(rows: list[dict]) -> str:
    cases = {row["case"]: row for row in rows}
    lines = []
    for case, row in cases.items():
        time = memory = ""
        if "seconds" in row:
            time = f"{row['seconds']:.2f} ({row['seconds_p20']:.2f}-{row['seconds_p80']:.2f})"
            memory = f"{row['peak_megabytes']:.0f}"
        private = f"{row['private_megabytes']:.0f}" if "private_megabytes" in row else ""
        lines.append((case, f"{row['samples']:,}", time, memory, private))
    names = ("case", "samples", "seconds", "peak MB", "private MB")
    goals = [
        _most(f"{case}: {what}", limit, cases.get(case, {}).get(key))
        for case, key, limit, what in INDEX_GOALS
    ]
    return f"{_table(names, lines)}\n{_table(('goal', 'wanted', 'found', ''), goals)}"


def _least(goal: str, wanted: float, found: float | None, unit: str = "") -> tuple[str, ...]:
    """Cells of a goal that is a lower limit."""
    return _goal_cells(goal, "≥", wanted, found, unit, found is not None and found >= wanted)


def _most(goal: str, wanted: float, found: float | None, unit: str = "") -> tuple[str, ...]:
    """Cells of a goal that is an upper limit, itself excluded."""
    return _goal_cells(goal, "<", wanted, found, unit, found is not None and found < wanted)


def _goal_cells(
    goal: str, sign: str, wanted: float, found: float | None, unit: str, reached: bool
) -> tuple[str, ...]:
    limit = f"{sign} {wanted:,}{unit}"
    if found is None:
        return goal, limit, NOT_MEASURED, ""
    shown = f"{found:,.0f}" if wanted >= 1000 else f"{found:.2f}"
    return goal, limit, f"{shown}{unit}", "reached" if reached else "missed"


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


def _measured(rows: Iterable[dict]) -> list[dict]:
    return [row for row in rows if "skipped" not in row]


def _mode(rows: list[dict], mode: str) -> dict[tuple[int, int], dict[str, dict]]:
    """(K, B) -> variant -> row."""
    table: dict[tuple[int, int], dict[str, dict]] = {}
    for row in _measured(rows):
        if row["mode"] == mode:
            table.setdefault((row["classes"], row["batch"]), {})[row["variant"]] = row
    return table


def _shapes(rows: list[dict]) -> dict[tuple, dict[str, dict]]:
    """(K, B, dtype of the logits, of the bank) -> variant -> row; float32 first."""
    table: dict[tuple, dict[str, dict]] = {}
    for row in _measured(rows):
        key = (row["classes"], row["batch"], row["logits_dtype"], row["bank_dtype"])
        table.setdefault(key, {})[row["variant"]] = row
    return {
        key: table[key] for key in sorted(table, key=lambda k: (k[2] != "float32", k[:2], k[2:]))
    }


def _best(variants: dict[str, dict], names: Iterable[str]) -> dict | None:
    """The fastest of some variants."""
    rows = [variants[name] for name in names if name in variants]
    return min(rows, key=lambda row: row["p50_us"], default=None)


def _time(row: dict | None) -> str:
    if row is None:
        return NOT_MEASURED
    return f"{row['p50_us']:.1f} ({row['p20_us']:.1f}-{row['p80_us']:.1f})"


def _number(row: dict | None, name: str) -> str:
    if row is None or row.get(name) is None:
        return NOT_MEASURED
    return f"{row[name]:.1f}".removesuffix(".0")


def _share(row: dict | None) -> str:
    return NOT_MEASURED if row is None else f"{row['share_of_copy']:.0%} ({row['p50_us']:.1f})"


def _goal(classes: int, row: dict | None) -> str:
    goal = next((goal for least, goal in GOALS.items() if classes >= least), None)
    if goal is None:
        return ""
    if row is None:
        return f"≥ {goal:.0%}"
    return f"≥ {goal:.0%}: {'reached' if row['share_of_copy'] >= goal else 'missed'}"


def _left_out(rows: list[dict]) -> str:
    """What was not timed and why, and what is to be said of what was."""
    shapes: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if why := row.get("skipped") or row.get("note"):
            key = (row["variant"], row.get("mode", ""), why)
            shapes.setdefault(key, []).append(f"{row['batch']} x {row['classes']}")
    lines = [
        f"- {', '.join(filter(None, (variant, mode)))}: {why} ({', '.join(where)})\n"
        for (variant, mode, why), where in shapes.items()
    ]
    return "Left out, or to be noted:\n\n" + "".join(lines) if lines else ""


def _plot(path: Path, devices: list[tuple[str, list[dict]]]) -> bool:
    """Draws the speed against K, a panel for each GPU; returns whether there is a plot."""
    lines = {
        "copy": ["copy"],
        "fused, forward": ["fused_forward"],
        "fused, forward + backward": ["fused"],
        "Triton": _TRITON,
        "best compiled": _COMPILED,
    }

    def draw(axes, shapes: dict[tuple, dict[str, dict]]) -> None:
        for label, names in lines.items():
            best = [(key[0], _best(variants, names)) for key, variants in shapes.items()]
            points = [(k, row["gigabytes_per_second"]) for k, row in best if row]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=label)
        axes.set(xscale="log", xlabel="classes K", ylabel="GB/s of ideal bytes")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()

    panels = [
        (device, {key: v for key, v in _shapes(rows).items() if key[2] == key[3] == "float32"})
        for device, rows in devices
    ]
    return _draw_panels(path, panels, draw)


def _plot_loading(path: Path, devices: list[tuple[str, list[dict]]]) -> bool:
    """Draws a bar for each loader of photographs, a panel for each device; see `_plot`."""

    def bars(rows: list[dict]) -> list[dict]:
        rows = _measured(rows)
        output = next((row["output"] for row in rows if row["loader"] == BASELINE), None)
        shown = [r for r in rows if r["output"] == output or r["loader"] == "decode-only"]
        return sorted(shown, key=lambda row: row["images_per_second"])

    def draw(axes, rows: list[dict]) -> None:
        speeds = [row["images_per_second"] for row in rows]
        errors = [
            [speed - row["images_per_second_p20"] for speed, row in zip(speeds, rows, strict=True)],
            [row["images_per_second_p80"] - speed for speed, row in zip(speeds, rows, strict=True)],
        ]
        names = [row["loader"] + (" (auto)" if row["auto"] else "") for row in rows]
        colors = ["tab:orange" if row["auto"] else "tab:blue" for row in rows]
        axes.barh(names, speeds, xerr=errors, color=colors, capsize=3)
        axes.set(xlabel="photographs per second")
        axes.grid(alpha=0.3, axis="x")

    return _draw_panels(path, [(device, bars(rows)) for device, rows in devices], draw)


def _draw_panels(path: Path, panels: list[tuple[str, Collection]], draw: Callable) -> bool:
    """Draws (title, content) pairs side by side, none for what is empty; see `_plot`.

    Args:
        path: The picture.
        panels: Titles, and what ``draw(axes, content)`` takes.
        draw: Draws one panel.
    """
    panels = [(title, content) for title, content in panels if content]
    if not panels:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is missing")
        return False
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, content) in zip(every_axes, panels, strict=True):
        draw(axes, content)
        axes.set_title(title)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


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
