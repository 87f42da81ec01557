"""Tables and plot of `benchmarks.kernels`."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness.averages import grouped
from benchmarks.tables.markdown import (
    NOT_MEASURED,
    Cells,
    list_of,
    markdown,
    measured,
    microseconds,
)
from benchmarks.tables.plots import draw_panels
from benchmarks.tables.section import Plot, Section

# Share of the speed of the copy that the fused forward pass is to reach, from this K on.
GOALS = {4096: 0.90, 1000: 0.80, 256: 0.55}

_COMPILED = ("compiled", "compiled_plain", "compiled_max-autotune-no-cudagraphs",
             "compiled_reduce-overhead")  # fmt: skip
TRITON = ("triton", "triton_loop")

Variants = dict[str, dict]  # variant -> row


def terminal_cells(rows: Sequence[dict]) -> Cells:
    """Table for the terminal: the main columns of every row."""
    names = ("suite", "B", "K", "variant", "mode", "p20", "p50", "p80", "launches", "GB/s",
             "of copy")  # fmt: skip
    lines = []
    for row in rows:
        cells = [row["suite"], str(row["batch"]), str(row["classes"]), row["variant"]]
        if "skipped" in row:
            lines.append([*cells, row["skipped"]])
            continue
        speed, share = row.get("gigabytes_per_second"), row.get("share_of_copy")
        cells += [row.get("mode", ""), *(f"{row[p]:.1f}" for p in ("p20_us", "p50_us", "p80_us"))]
        cells.append(str(row.get("launches") or ""))
        cells += [f"{speed:.0f}" if speed else "", f"{share:.0%}" if share else ""]
        lines.append(cells)
    return names, lines


def _latency(rows: list[dict]) -> str:
    called, captured = (
        _by_shape([row for row in measured(rows) if row["mode"] in modes], "classes", "batch")
        for modes in (("eager call",), ("CUDA graph", "kernel alone"))
    )
    shapes = sorted({(row["classes"], row["batch"]) for row in rows})
    compared = {
        "fused": ["fused"],
        "fused_and_grad": ["fused_and_grad"],
        "eager": ["eager"],
        "plain": ["plain"],
        "best compiled": _COMPILED,
        "Triton": TRITON,
    }
    host = {"fused": ["fused"], "fused_and_grad": ["fused_and_grad"],
            "one native operation": ["native_one_op"]}  # fmt: skip
    graphs = {name: compared[name] for name in ("fused", "fused_and_grad", "plain", "Triton")}
    graphs["forward kernel alone"] = ["fused_forward"]

    def table(title: str, columns: dict, by_shape: dict[tuple, Variants], cell: Callable) -> str:
        lines = []
        for k, batch in shapes:
            variants = by_shape.get((k, batch), {})
            fastest = (best(variants, names) for names in columns.values())
            lines.append((str(batch), str(k), *map(cell, fastest)))
        return f"{title}:\n\n{markdown(('B', 'K', *columns), lines)}"

    host_time, launches = (partial(_number, name=name) for name in ("host_p50_us", "launches"))
    call_title = "Consecutive calls, until the device has finished"
    graph_title = "In a CUDA graph of many steps, and the time of the device in the kernel"
    return "\n".join(
        (
            table(call_title, compared, called, microseconds),
            table("Time of the host for a call", host, called, host_time),
            table(graph_title, graphs, captured, microseconds),
            table("Kernels a step", compared, called, launches),
            _remarks(rows),
        )
    )


def _bandwidth(rows: list[dict]) -> str:
    columns = (["fused_forward_any_index"], ["fused_and_grad"], ["fused"], TRITON, _COMPILED,
               ["plain"], ["eager"])  # fmt: skip
    lines = []
    for (classes, batch, logits, bank), variants in by_dtype(rows).items():
        dtypes = logits if logits == bank else f"{logits}, bank {bank}"
        forward, copy, speed = variants.get("fused_forward"), variants.get("copy"), NOT_MEASURED
        if copy:
            speed = f"{copy['gigabytes_per_second']:.0f} GB/s ({copy['p50_us']:.1f})"
        shares = (_share(best(variants, names)) for names in columns)
        cells = (str(batch), str(classes), dtypes, speed, _share(forward), _goal(classes, forward))
        lines.append((*cells, *shares))
    names = ("B", "K", "dtype", "copy", "fused_forward", "goal", "fused_forward_any_index",
             "fused_and_grad", "fused", "Triton", "best compiled", "plain", "eager")  # fmt: skip
    return f"{markdown(names, lines)}\n{_remarks(rows)}"


def _pinned(rows: list[dict]) -> str:
    lines = (
        (
            f"{row['batch']} x {row['classes']}",
            row["variant"],
            row["what"],
            microseconds(row),
            f"{row['gigabytes_per_second']:.1f}",
            f"{row['share_of_copy']:.0%}",
        )
        for row in measured(rows)
    )
    names = ("B x K", "variant", "operation", "time", "GB/s", "share of the faster copy")
    return f"{markdown(names, lines)}\n{_remarks(rows)}"


def _by_shape(rows: Iterable[dict], *keys: str) -> dict[tuple, Variants]:
    """Values of the keys -> variant -> row."""
    groups = grouped(rows, *keys).items()
    return {key: {row["variant"]: row for row in group} for key, group in groups}


def by_dtype(rows: Iterable[dict]) -> dict[tuple, Variants]:
    """(K, B, dtype of the logits, of the bank) -> variant -> row; float32 first."""
    table = _by_shape(measured(rows), "classes", "batch", "logits_dtype", "bank_dtype")
    return dict(sorted(table.items(), key=lambda item: (item[0][2] != "float32", item[0])))


def best(variants: Variants, names: Iterable[str]) -> dict | None:
    """The fastest of some variants; None if they were not measured."""
    rows = [variants[name] for name in names if name in variants]
    return min(rows, key=lambda row: row["p50_us"], default=None)


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


def _remarks(rows: list[dict]) -> str:
    """The reasons of skipped rows, and the notes of the others."""
    found = [{**row, "why": why} for row in rows if (why := row.get("skipped") or row.get("note"))]
    lines = []
    for (variant, mode, why), group in grouped(found, "variant", "mode", "why").items():
        shapes = ", ".join(f"{row['batch']} x {row['classes']}" for row in group)
        lines.append(f"{', '.join(filter(None, (variant, mode)))}: {why} ({shapes})")
    return f"Not measured, or with a note:\n\n{list_of(lines)}" if lines else ""


def _plot(path: Path, devices: list[tuple[str, list[dict]]]) -> bool:
    """Draws the speed against K, one panel for each GPU."""
    curves = {
        "copy": ["copy"],
        "fused, forward": ["fused_forward"],
        "fused, forward + backward": ["fused"],
        "Triton": TRITON,
        "best compiled": _COMPILED,
    }

    def draw(axes, shapes: dict[tuple, Variants]) -> None:
        for label, names in curves.items():
            fastest = [(key[0], best(variants, names)) for key, variants in shapes.items()]
            points = [(k, row["gigabytes_per_second"]) for k, row in fastest if row]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=label)
        axes.set(xscale="log", xlabel="classes K", ylabel="GB/s of ideal bytes")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()

    panels = [
        (device, {key: v for key, v in by_dtype(rows).items() if key[2] == key[3] == "float32"})
        for device, rows in devices
    ]
    return draw_panels(path, panels, draw)


SECTIONS = {
    "latency": Section(
        "Latency on a GPU",
        "Typical batches of training with noisy labels: forward + backward (`fused_and_grad`: "
        "forward + gradient), float32.",
        "kernels --suite latency",
        _latency,
        gpu_only=True,
    ),
    "bandwidth": Section(
        "Bandwidth on a GPU",
        "B * K of at least 1e7, a bank of 1 GB, fresh distinct indices in each call. Cells: share "
        "of the speed of the copy, and time. `fused_forward*` are forward passes, `fused_and_grad` "
        "is forward + gradient, all others are forward + backward. The goal is for "
        "`fused_forward`.",
        "kernels --suite bandwidth",
        _bandwidth,
        gpu_only=True,
        plot=Plot("roofline.png", "GB/s of ideal bytes against K", _plot),
    ),
    "pinned": Section(
        "A bank in pinned host memory",
        "Logits on the GPU, float32. The copies move as many bytes as the bank rows of a step "
        "between pinned buffers and the device, in each direction: one after the other, or on two "
        "streams. GB/s count both directions.",
        "kernels --suite pinned",
        _pinned,
        gpu_only=True,
    ),
}
