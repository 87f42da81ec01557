"""Sections of `benchmarks.report` on whole training steps and on scaling."""

from collections.abc import Callable, Sequence

from benchmarks.tables.markdown import NOT_MEASURED, markdown, spread

Cells = tuple[Sequence[str], list[Sequence[str]]]

# What ALR may cost over cross entropy: case, kind of device, percent.
STEP_GOALS = (("resnet50", "GPU", 1), ("digits", "CPU", 2))


def train_step_cells(rows: list[dict]) -> Cells:
    """Names and lines of the table of training steps."""
    lines = []
    for row in rows:
        net = f"{row['case']}, {row['image'][1]} x {row['image'][2]}, B {row['batch']}, "
        net += f"K {row['classes']}, {row['precision']}"
        if "skipped" in row:
            lines.append((net, "all", "", NOT_MEASURED, f"({row['skipped']})", ""))
            continue
        lines.append(
            (
                net,
                f"`{row['variant']}`",
                row["what"],
                spread(row, "ms"),
                *(_interval(row.get(f"over_{base}_percent")) for base in ("ce", "plain")),
            )
        )
    names = ("net", "variant", "is", "ms", "% over `ce`", "% over `plain`")
    return names, lines


def _interval(percent: Sequence[float] | None) -> str:
    if percent is None:
        return ""
    middle, low, high = (f"{value:+.1f}" for value in percent)
    return f"{middle} ({low} to {high})"


def _train_step(rows: list[dict]) -> str:
    here = "GPU" if rows[0]["environment"]["gpu"] else "CPU"
    found = {r["case"]: r["over_ce_percent"] for r in rows if r["variant"] == "alr"}
    goals = []
    for case, kind, limit in STEP_GOALS:
        percent = found.get(case) if kind == here else None
        # An interval on both sides of the limit decides nothing.
        verdict = ""
        if percent is not None:
            _, low, high = percent
            verdict = "reached" if high < limit else "missed" if low >= limit else "undecided"
        goal = f"`alr` over `ce`, {case} on a {kind}"
        goals.append((goal, f"< {limit} %", _interval(percent) or NOT_MEASURED, verdict))
    rounds = sorted({row["rounds"] for row in rows if "rounds" in row})
    return "\n".join(
        (
            markdown(*train_step_cells(rows)),
            f"Rounds of each net: {', '.join(map(str, rounds)) or NOT_MEASURED}.\n",
            markdown(("goal", "wanted", "found", ""), goals),
        )
    )


def ranks_cells(rows: list[dict]) -> Cells:
    """Names and lines of the table of processes that train together."""

    def milliseconds(row: dict, name: str) -> str:
        return spread(row, name) if name in row else ""

    names = ("processes x threads", "batch of each", "images/s", "to one process", "step, ms",
             "alone, ms", "together adds, ms", "sum of gradients, ms")  # fmt: skip
    lines = [
        (
            f"{row['processes']} x {row['threads']}" + (" *" if "note" in row else ""),
            str(row["batch_per_process"]),
            spread(row, "images_per_second", 0),
            f"{row['times_one_process']:.2f}x",
            spread(row, "step_ms"),
            milliseconds(row, "alone_ms"),
            f"{row['together_ms']:.2f}" if "together_ms" in row else "",
            milliseconds(row, "all_reduce_ms"),
        )
        for row in rows
    ]
    return names, lines


def _ranks(rows: list[dict]) -> str:
    row = rows[0]
    facts = [
        f"{row['model']}, images {' x '.join(map(str, row['image']))}, B = {row['batch']} over all "
        f"processes, gradients of {row['gradient_bytes'] / 1e6:.2f} MB",
        f"the machine has {row['cpus']} CPUs, which is where its processes end to add anything",
    ]
    facts += [f"*: {note}" for note in dict.fromkeys(r["note"] for r in rows if "note" in r)]
    return f"{markdown(*ranks_cells(rows))}\n" + "".join(f"- {fact}\n" for fact in facts)


def bank_cells(rows: list[dict]) -> Cells:
    """Names and lines of the table of banks."""
    phases = [phase for phase in PHASES if phase != "update"]
    names = ("N x K", "dtype", "rows in", "MB", "update, ms", *(f"{p}, s" for p in phases),
             "checkpoint, MB", "export, MB", "peak MB")  # fmt: skip
    lines = []
    for row in rows:
        line = [
            f"{row['samples']:,} x {row['classes']:,}",
            row["dtype"],
            row["placement"],
            _megabytes(row["bytes"]),
        ]
        if "skipped" in row:
            line += [NOT_MEASURED, f"({row['skipped']})"]
            lines.append([*line, *[""] * (len(names) - len(line))])
            continue
        peaks = row["peaks_megabytes"]
        lines.append(
            [
                *line,
                spread(row, "update_ms", 3),
                # Rows of before a phase was measured have none.
                *(
                    f"{row[name]:.3g}" if (name := f"{phase}_seconds") in row else ""
                    for phase in phases
                ),
                _megabytes(row["checkpoint_bytes"]),
                _megabytes(row["export_bytes"]),
                f"{row['peak_megabytes']:,.0f} ({max(peaks, key=peaks.get)})",
            ]
        )
    return names, lines


def _bank(rows: list[dict]) -> str:
    return f"{markdown(*bank_cells(rows))}\n{markdown(('phase', 'is'), PHASES.items())}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def step_cost_cells(rows: list[dict]) -> Cells:
    """Names and lines of the table of the operation's time over N, K and B."""
    lines = [
        (
            f"{row['samples']:,}",
            f"{row['classes']:,}",
            f"{row['batch']:,}",
            _megabytes(row["bank_bytes"]),
            f"{row['p50_us']:.1f} ({row['p20_us']:.1f}-{row['p80_us']:.1f})",
            f"{row['ns_per_element']:.2f}",
        )
        for row in rows
    ]
    return ("N", "K", "B", "bank, MB", "microseconds", "ns an element of B x K"), lines


def _step_cost(rows: list[dict]) -> str:
    return markdown(*step_cost_cells(rows))


# Suite -> title, note, and what makes its text; as `benchmarks.report` wants them.
SECTIONS: dict[str, tuple[str, str, Callable[[list[dict]], str]]] = {
    "train_step": (
        "A whole training step",
        "Milliseconds of zero_grad, forward, loss, backward, optimizer, scheduler and sums, with "
        "images in memory. Percentages are medians over rounds, of two variants in the same round, "
        "with the 95 % interval of a bootstrap. `ce_again` is `ce` once more: 0 were perfect.",
        _train_step,
    ),
    "ranks": (
        "Processes together on the CPU",
        "Training with ALR in gloo processes that share the CPUs and one batch. To one process: "
        "images/s beside one process with as many threads as each of these. Alone: the same step "
        "of the same busy processes without any communication; together adds: what the step takes "
        "longer then, waiting for others included. Sum of gradients: that alone, nothing beside "
        "it.",
        _ranks,
    ),
    "bank": (
        "A label bank as it grows",
        "Seconds of each phase, of an update milliseconds. Plain writing is there for saving and "
        "export to be compared with. Peak: how far the anonymous memory of the process rises above "
        "what it was before, and in which phase; files mapped into memory are not in it. Files "
        "that were just written are in the page cache as far as they fit.",
        _bank,
    ),
    "step_cost": (
        "The operation over N, K and B",
        "Loss and gradient in one pass (`alr_loss_and_grad`), float32; all rows of the bank, or a "
        "million of them, have their turn before one comes again.",
        _step_cost,
    ),
}

# In this order; each but "update", which is a step, goes through the whole bank once.
PHASES = {
    "make": "`LabelBank.from_labels`",
    "update": "`ALRLoss.loss_and_grad` of 256 random rows, most of them for the first time",
    "summarise": "`refined_labels`",
    "save": "`CheckpointStore.save`, waiting",
    "check": "`check_files`, which goes before loading",
    "load": "`checkpoint.load`",
    "export": "`BankFileWriter`, rows in the order of the ids",
    "table": "`alr_fast.labels.table.export` of that file to Parquet, with scores: it is read 4 times",
    "write": "a plain file of as many bytes, flushed to the disk",
}
