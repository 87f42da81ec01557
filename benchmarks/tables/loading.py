"""Tables and plot of `benchmarks.loading`."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables.markdown import NOT_MEASURED, Cells, list_of, markdown, measured, spread
from benchmarks.tables.plots import draw_panels
from benchmarks.tables.section import Plot, Section

BASELINE = "torch-pil"

# Goals: the automatically chosen loader relative to the baseline and to the fastest other loader of
# the same source and output, and images per second of the loader for small images.
BASELINE_GOAL, FASTEST_GOAL, MEMORY_GOAL = 1.3, 0.95, 50_000
# Goals of the index: case, key of the row, limit, description.
INDEX_GOALS = (
    ("from the cache", "seconds", 2, "seconds to open"),
    ("from the cache", "peak_megabytes", 500, "MB to open"),
    ("worker", "private_megabytes", 50, "MB of a worker's own"),
)
_MEMORY = ("peak_megabytes", "private_megabytes")


def terminal_cells(rows: Sequence[dict]) -> Cells:
    """Table of the loaders for the terminal."""
    ratios = to_baseline(rows)
    lines = []
    for row in rows:
        if "skipped" in row:
            lines.append((_name(row), row["source"], row["skipped"]))
            continue
        speeds = (f"{row[f'images_per_second{p}']:,.0f}" for p in ("", "_p20", "_p80"))
        ratio = f"{ratios[row['loader']]:.2f}" if row["loader"] in ratios else ""
        cpu = f"{row['cpu_ms_per_image']:.3f}"
        lines.append((_name(row), row["source"], *speeds, cpu, ratio))
    return ("loader", "source", "p50", "p20", "p80", "CPU ms", f"to {BASELINE}"), lines


def index_terminal_cells(rows: Sequence[dict]) -> Cells:
    """Table of the index for the terminal."""
    keys = ("seconds", *_MEMORY)
    lines = ((row["case"], *(f"{row[k]:.2f}" if k in row else "" for k in keys)) for row in rows)
    return ("case", "seconds", "peak MB", "private MB"), lines


def to_baseline(rows: Sequence[dict]) -> dict[str, float]:
    """Speed relative to `BASELINE` of the loaders that return the same batches."""
    speed = {r["loader"]: (r["images_per_second"], r["output"]) for r in measured(rows)}
    base, output = speed.get(BASELINE, (None, None))
    return {name: value / base for name, (value, given) in speed.items() if given == output}


def _name(row: dict) -> str:
    return row["loader"] + (" (auto)" if row["auto"] else "")


def _loading(rows: list[dict]) -> str:
    found = {row["loader"]: row for row in measured(rows)}
    ratios = to_baseline(rows)
    lines = []
    for name, row in found.items():
        shown, cpu = f"`{name}`" + (" (auto)" if row["auto"] else ""), row["cpu_ms_per_image"]
        speed = spread(row, "images_per_second", 0)
        ratio = f"{ratios[name]:.2f}x" if name in ratios else ""
        lines.append((shown, row["what"], row["source"], speed, f"{cpu:.3f}", ratio))
    names = ("loader", "description", "source", "images/s", "CPU ms an image",
             f"to `{BASELINE}`")  # fmt: skip
    sources = {(row["source"], row["files"], row["bytes_per_file"]) for row in found.values()}
    threads = sorted({row["threads"] for row in found.values()})
    facts = rows[0]["environment"]
    used = [
        f"threads or workers of each: {', '.join(map(str, threads)) or NOT_MEASURED}",
        f"{facts['cpus']} CPUs ({facts['cpu']})",
        *(f"{name} {facts[name]}" for name in ("dali", "torchvision", "pillow") if facts.get(name)),
        *(f"{s}: {n:,} of {b / 1e3:.1f} kB on average" for s, n, b in sorted(sources)),
    ]
    skipped = (f"`{r['loader']}` skipped: {r['skipped']}" for r in rows if "skipped" in r)
    goals = markdown(("goal", "limit", "measured", ""), _goals(found, ratios))
    return "\n".join((markdown(names, lines), list_of(used), goals, list_of(skipped)))


def _goals(found: dict[str, dict], ratios: dict[str, float]) -> list[tuple[str, ...]]:
    goals = []
    for name, row in found.items():
        if not (row["auto"] and name in ratios):
            continue
        goal = f"`{name}` (auto) to `{BASELINE}`"
        goals.append(_goal(goal, "≥", BASELINE_GOAL, ratios[name], "x"))
        others = {
            other: row["images_per_second"] / that["images_per_second"]
            for other, that in found.items()
            if other != name and (that["source"], that["output"]) == (row["source"], row["output"])
        }
        if others:
            fastest = min(others, key=others.get)
            goal = f"`{name}` (auto) to the fastest other loader of {row['source']}, `{fastest}`"
            goals.append(_goal(goal, "≥", FASTEST_GOAL, others[fastest], "x"))
    if not goals:
        goals.append(_goal(f"auto to `{BASELINE}`", "≥", BASELINE_GOAL, None, "x"))
    memory = found.get("memory", {}).get("images_per_second")
    return [*goals, _goal("`memory`, images/s", "≥", MEMORY_GOAL, memory)]


def _index(rows: list[dict]) -> str:
    cases = {row["case"]: row for row in rows}
    lines = []
    for case, row in cases.items():
        time = spread(row, "seconds") if "seconds" in row else ""
        memory = (f"{row[k]:.0f}" if k in row else "" for k in _MEMORY)
        lines.append((case, f"{row['samples']:,}", time, *memory))
    names = ("case", "samples", "seconds", "peak MB", "private MB")
    goals = [
        _goal(f"{case}: {what}", "<", limit, cases.get(case, {}).get(key))
        for case, key, limit, what in INDEX_GOALS
    ]
    return f"{markdown(names, lines)}\n{markdown(('goal', 'limit', 'measured', ''), goals)}"


def _goal(
    goal: str, sign: str, limit: float, found: float | None, unit: str = ""
) -> tuple[str, ...]:
    """Cells of a goal; a limit with the sign < must not be reached."""
    wanted = f"{sign} {limit:,}{unit}"
    if found is None:
        return goal, wanted, NOT_MEASURED, ""
    reached = found < limit if sign == "<" else found >= limit
    shown = f"{found:,.0f}" if limit >= 1000 else f"{found:.2f}"
    return goal, wanted, f"{shown}{unit}", "reached" if reached else "missed"


def _plot(path: Path, devices: list[tuple[str, list[dict]]]) -> bool:
    """Draws a bar for each loader of photographs, one panel for each device."""

    def bars(rows: list[dict]) -> list[dict]:
        rows = measured(rows)
        output = next((row["output"] for row in rows if row["loader"] == BASELINE), None)
        shown = [r for r in rows if r["output"] == output or r["loader"] == "decode-only"]
        return sorted(shown, key=lambda row: row["images_per_second"])

    def draw(axes, rows: list[dict]) -> None:
        speeds = [row["images_per_second"] for row in rows]
        errors = [
            [row["images_per_second"] - row["images_per_second_p20"] for row in rows],
            [row["images_per_second_p80"] - row["images_per_second"] for row in rows],
        ]
        colors = ["tab:orange" if row["auto"] else "tab:blue" for row in rows]
        axes.barh([_name(row) for row in rows], speeds, xerr=errors, color=colors, capsize=3)
        axes.set(xlabel="photographs per second")
        axes.grid(alpha=0.3, axis="x")

    return draw_panels(path, [(device, bars(rows)) for device, rows in devices], draw)


SECTIONS = {
    "loading": Section(
        "Loading",
        "Photographs as JPEG, generated by the command, are turned into batches: random resized "
        "crop, mirrored, normalised, channels last, on the training device; small images come from "
        "memory. Images per second in the steady state, without the start of an epoch, files in "
        "the page cache; medians over turns. CPU ms include all threads and workers. Auto: the "
        "loader that a run chooses by default. Full decoding and the small images return other "
        "batches, so they have no ratio.",
        "loading",
        _loading,
        plot=Plot("loading.png", "photographs per second of each loader", _plot),
    ),
    "index": Section(
        "A list of millions of samples",
        "WebVision's lists, read for the first time (and cached), opened from the cache, and used "
        "by a worker process that has accessed 1,000 paths. Peak: rise of the resident memory of a "
        "fresh process above its size after imports; private: memory that a forked DataLoader "
        "worker does not share with any other process. Files in the page cache.",
        "loading",
        _index,
    ),
}
