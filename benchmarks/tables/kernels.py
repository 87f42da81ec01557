"""Tables and plot of the kernel benchmarks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.tables.markdown import NOT_MEASURED
from benchmarks.tables.markdown import markdown as _table
from benchmarks.tables.plots import _draw_panels

PLOT = "roofline.png"

# What the fused forward pass is to reach, as a share of the copy: from this K on.
GOALS = {4096: 0.90, 1000: 0.80, 256: 0.55}

_COMPILED = ("compiled", "compiled_plain", "compiled_max-autotune-no-cudagraphs",
             "compiled_reduce-overhead")  # fmt: skip
_TRITON = ("triton", "triton_loop")


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


# What each part is; "step" is measured against "native step".
PARTS = {
    "step": "`alr_loss`, then `backward`",
    "forward": "`alr_loss` alone",
    "loss and gradient": "`alr_loss_and_grad`",
    "operator": "the operator itself, on all rows",
    "operator, one row": "the same on one row: dispatch, checks, outputs, launch",
    "empty function, step": "an `autograd.Function` that does nothing, then `backward`",
    "empty function, forward": "the same without `backward`",
    "leaf": "`logits.detach().requires_grad_()`, part of each step and forward",
    "native step": "`(x * 2).sum()`, then `backward`",
}
