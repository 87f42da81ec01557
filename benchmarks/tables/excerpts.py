"""Short tables of the rows, for pages of docs/.

A page has a pair of comments for each, and `python -m benchmarks.report` fills in what is between:

    <!-- rows: kernels_cpu -->
    <!-- end of rows -->
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness.averages import grouped, mean_rows
from benchmarks.tables import fused_vs_reference, kernels, loading, suspects, training
from benchmarks.tables.accuracy import by_method, percent, seeds_of, validation_mean
from benchmarks.tables.markdown import NOT_MEASURED, markdown, measured

_MARK = re.compile(r"<!-- rows: (\w+) -->\n.*?<!-- end of rows -->", re.DOTALL)

Rows = Sequence[dict]


@dataclass(frozen=True)
class Excerpt:
    """A short table of one suite: its Markdown from the rows of one device."""

    suite: str
    text: Callable[[Rows], str]


def fill(page: str, table: Callable[[Excerpt], str]) -> str:
    """A page with its tables.

    Args:
        page: Text of a page.
        table: Returns the tables of an excerpt, with their sources.

    Raises:
        KeyError: The page names an excerpt that does not exist.
    """

    def filled(match: re.Match[str]) -> str:
        text = table(EXCERPTS[match[1]]).strip()
        return f"<!-- rows: {match[1]} -->\n\n{text}\n\n<!-- end of rows -->"

    return _MARK.sub(filled, page)


def _kernels_cpu(rows: Rows) -> str:
    def times(row: dict, variant: str) -> str:
        ratio = row[f"{variant}_ms"] / row["fused_ms"]
        return f"{row[f'{variant}_ms']:.2f} ({ratio:.1f}x)"

    lines = [
        (
            f"{row['batch']} x {row['classes']}",
            *(f"{row[f'{variant}_ms']:.3f}" for variant in ("fused", "fused_and_grad")),
            *(times(row, variant) for variant in fused_vs_reference.SLOWER),
            f"{row['copy_ms']:.3f}",
        )
        for row in rows
        if not row.get("daily")
    ]
    eager, compiled = (
        fused_vs_reference.mean_ratio(rows, variant) for variant in fused_vs_reference.SLOWER
    )
    names = ("B x K", "`alr_loss`", "`alr_loss_and_grad`", "eager", "compiled", "copy")
    return (
        f"{markdown(names, lines)}\nGeometric means: {eager:.1f} times faster than eager, "
        f"{compiled:.1f} times faster than compiled."
    )


def _bandwidth(rows: Rows) -> str:
    columns = {
        "copy": ["copy"],
        "forward": ["fused_forward"],
        "forward + gradient": ["fused_and_grad"],
        "`alr_loss` and backward": ["fused"],
        "Triton": kernels.TRITON,
        "eager": ["eager"],
    }
    lines = []
    for (classes, batch, *dtypes), variants in kernels.by_dtype(rows).items():
        if dtypes != ["float32", "float32"]:
            continue
        best = {name: kernels.best(variants, names) for name, names in columns.items()}
        cells = [NOT_MEASURED if row is None else f"{row['p50_us']:,.0f}" for row in best.values()]
        forward = best["forward"]
        share = NOT_MEASURED if forward is None else f"{100 * forward['share_of_copy']:.0f} %"
        lines.append((f"{batch} x {classes}", *cells[:2], share, *cells[2:]))
    first, second, *rest = columns
    return markdown(("B x K", first, second, "speed of the copy", *rest), lines)


def _latency(rows: Rows) -> str:
    columns = {
        "`alr_loss_and_grad`": ["fused_and_grad"],
        "`alr_loss` and backward": ["fused"],
        "Triton": kernels.TRITON,
        "eager": ["eager"],
    }
    calls = [row for row in measured(rows) if row["mode"] == "eager call"]
    lines = []
    for (classes, batch), group in grouped(calls, "classes", "batch").items():
        if batch == 256:
            variants = {row["variant"]: row for row in group}
            best = (kernels.best(variants, names) for names in columns.values())
            cells = (NOT_MEASURED if row is None else f"{row['p50_us']:,.0f}" for row in best)
            lines.append((f"{batch} x {classes}", *cells))
    return markdown(("B x K", *columns), lines)


def _train_step(rows: Rows) -> str:
    lines = []
    for (case,), group in grouped(measured(rows), "case").items():
        found = {row["variant"]: row for row in group}
        times = (f"{found[name]['ms']:,.1f}" for name in ("ce", "alr"))
        over = (
            training.shown_percent(found[name].get("over_ce_percent"))
            for name in ("alr", "alr_eager", "ce_again")
        )
        lines.append((case, *times, *over))
    names = ("model", "cross entropy, ms", "ALR, ms", "ALR over cross entropy, %",
             "ALR in eager PyTorch, %", "cross entropy once more, %")  # fmt: skip
    return markdown(names, lines)


def _loading(rows: Rows) -> str:
    ratios = loading.to_baseline(rows)
    lines = [
        (
            f"`{row['loader']}`" + (" (chosen by default)" if row["auto"] else ""),
            row["what"],
            f"{row['images_per_second']:,.0f}",
            f"{ratios[row['loader']]:.2f}" if row["loader"] in ratios else "",
        )
        for row in measured(rows)
    ]
    return markdown(("loader", "what it does", "images/s", f"to `{loading.BASELINE}`"), lines)


def _index(rows: Rows) -> str:
    lines = [
        (row["case"], f"{row['samples']:,}", f"{row['seconds']:.2f}")
        for row in rows
        if "seconds" in row
    ]
    return markdown(("list of images", "samples", "seconds"), lines)


def _bank(rows: Rows) -> str:
    row = max(measured(rows), key=lambda row: row["bytes"])
    phases = {"made": "make", "saved": "save", "loaded": "load", "exported with scores": "table"}
    seconds = (f"{row[f'{phase}_seconds']:.0f}" for phase in phases.values())
    size = f"{row['samples']:,} x {row['classes']:,}, {row['dtype']}, {row['bytes'] / 1e9:.1f} GB"
    names = ("bank in a file", *(f"{name}, s" for name in phases), "memory beside the file, MB")
    return markdown(names, [(size, *seconds, f"{row['peak_megabytes']:,.0f}")])


_KINDS = ("none", "symmetric", "asymmetric", "pair", "instance")


def _noise_order(noise: str) -> tuple[int, str]:
    kind = noise.partition("-")[0]
    return (_KINDS.index(kind) if kind in _KINDS else len(_KINDS), noise)


def _noise(noise: str) -> str:
    """Kind and percent: symmetric-0.4 is "symmetric 40 %"."""
    kind, _, rate = noise.partition("-")
    return f"{kind} {100 * float(rate):.0f} %" if rate else "no noise"


def _accuracy(rows: Rows) -> str:
    first = rows[0]
    ordered = sorted(rows, key=lambda row: _noise_order(row["noise"]))
    (method, *noises), lines = by_method(ordered, "test_accuracy_last")
    return (
        f"{first['train_samples']:,} training images, {first['epochs']} epochs, {seeds_of(rows)}; "
        f"percent:\n\n{markdown((method, *map(_noise, noises)), lines)}"
    )


def _short_run(rows: Rows) -> str:
    figures = ("test_accuracy_last", "label_accuracy_before", "label_accuracy_after")
    lines = [
        (_noise(row["noise"]), f"`{row['method']}`", *(percent(row, figure) for figure in figures))
        for row in mean_rows(rows)
    ]
    names = ("noise", "method", "test accuracy, last epoch, %", "label accuracy before, %",
             "after, %")  # fmt: skip
    return markdown(names, lines)


def _suspects(rows: Rows) -> str:
    shown = [r for r in rows if r["source"] != suspects.OWN or r["score"] == suspects.SCORE]
    noises = sorted({row["noise"] for row in shown}, key=_noise_order)
    lines = []
    for (source,), group in grouped(shown, "source").items():
        by_noise = grouped(group, "noise")
        best = (suspects.best(by_noise[noise,]) for noise in noises)
        means = (f"{suspects.mean(rows, 'average_precision'):.3f}" for rows in best)
        lines.append((source, *means))
    table = markdown(("ranking", *map(_noise, noises)), lines)
    return f"{rows[0]['samples']:,} images, {seeds_of(rows)}:\n\n{table}"


# Around the chosen setting: one option changed at a time, and the nearest rival.
_SETTINGS = ((0.9, 0.4, 10), (0.9, 0, 10), (0.9, 0.1, 10), (0.9, 0.2, 10), (0.9, 0.8, 10),
             (0.9, 1.6, 10), (0.9, 0.4, 5), (0.9, 0.4, 20), (0.7, 0.4, 10),
             (0.7, 0.4, 20))  # fmt: skip


def _settings(rows: Rows) -> str:
    by_name = {
        name: {row["noise"]: row for row in group}
        for (name,), group in grouped(mean_rows(rows), "method").items()
    }
    noises = sorted(set(next(iter(by_name.values()))) - {"none"}, key=_noise_order)
    lines = []
    for setting in _SETTINGS:
        a, lam, warmup = setting
        means = by_name[f"a={a:g} lam={lam:g} warm-up={warmup}"]
        tests = (f"{100 * means[noise]['test_accuracy_last']:.1f}" for noise in noises)
        cells = (f"{a:g}", f"{lam:g}", str(warmup), f"{100 * validation_mean(means):.1f}")
        bold = setting == _SETTINGS[0]
        lines.append((*(f"**{cell}**" if bold else cell for cell in cells), *tests))
    names = (
        "momentum",
        "entropy weight",
        "warm-up",
        "held out",
        *(f"test: {_noise(n)}" for n in noises),
    )
    return markdown(names, lines)


EXCERPTS = {
    "kernels_cpu": Excerpt("fused_vs_reference", _kernels_cpu),
    "bandwidth": Excerpt("bandwidth", _bandwidth),
    "latency": Excerpt("latency", _latency),
    "train_step": Excerpt("train_step", _train_step),
    "loading": Excerpt("loading", _loading),
    "index": Excerpt("index", _index),
    "bank": Excerpt("bank", _bank),
    "accuracy_digits": Excerpt("accuracy_digits", _accuracy),
    "accuracy_cifar10": Excerpt("accuracy_cifar10", _accuracy),
    "short_run": Excerpt("accuracy_cifar10-small", _short_run),
    "suspects_digits": Excerpt("suspects_digits", _suspects),
    "suspects_cifar10": Excerpt("suspects_cifar10", _suspects),
    "settings": Excerpt("study_digits", _settings),
}
