"""Tables and plot of the loading benchmark."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables.kernels import _measured
from benchmarks.tables.markdown import NOT_MEASURED
from benchmarks.tables.markdown import markdown as _table
from benchmarks.tables.plots import _draw_panels

LOADING_PLOT = "loading.png"

# What loading is to reach: the loader that a run takes by itself, to the baseline and to the
# fastest other one of the same source and batches; the loader for small images.
BASELINE_GOAL, FASTEST_GOAL, MEMORY_GOAL = 1.3, 0.95, 50_000
# Of the index: (case, key of the row, limit, in words).
INDEX_GOALS = (
    ("from the cache", "seconds", 2, "seconds to open"),
    ("from the cache", "peak_megabytes", 500, "MB to open"),
    ("worker", "private_megabytes", 50, "MB of a worker's own"),
)


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


def to_baseline(rows: Sequence[dict]) -> dict[str, float]:
    """How many times faster than `BASELINE` the loaders are that give the same batches."""
    speed = {r["loader"]: (r["images_per_second"], r["output"]) for r in rows if "output" in r}
    base, output = speed.get(BASELINE, (None, None))
    return {name: value / base for name, (value, given) in speed.items() if given == output}


BASELINE = "torch-pil"
