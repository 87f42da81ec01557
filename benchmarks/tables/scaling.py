"""Tables of `benchmarks.scaling`."""

from benchmarks.tables.markdown import NOT_MEASURED, Cells, list_of, markdown, microseconds, spread
from benchmarks.tables.section import Section

# The phases of a bank in their order; each except "update", which is a step, covers the whole bank.
PHASES = {
    "make": "`LabelBank.from_labels`",
    "update": "`ALRLoss.loss_and_grad` of 256 random rows, most of them for the first time",
    "summarise": "`refined_labels`",
    "save": "`CheckpointStore.save`, waiting for it to finish",
    "check": "`check_files`, which precedes loading",
    "load": "`checkpoint.load`",
    "export": "`BankFileWriter`, rows in the order of the ids",
    "table": "`alr_fast.labels.table.export` of that file to Parquet, with scores: it is read 4 "
    "times",
    "write": "a plain file of as many bytes, flushed to the disk",
}


def phase_key(phase: str) -> str:
    """Key of a phase in a row."""
    return "update_ms" if phase == "update" else f"{phase}_seconds"


def ranks_cells(rows: list[dict]) -> Cells:
    """Table of processes that train together."""

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
        f"the machine has {row['cpus']} CPUs; more processes than CPUs cannot be faster",
    ]
    facts += [f"*: {note}" for note in dict.fromkeys(r["note"] for r in rows if "note" in r)]
    return f"{markdown(*ranks_cells(rows))}\n{list_of(facts)}"


def bank_cells(rows: list[dict]) -> Cells:
    """Table of banks."""
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
        line.append(spread(row, "update_ms", 3))
        # Older rows lack the phases that were added later.
        seconds = (row.get(phase_key(phase)) for phase in phases)
        line += ["" if value is None else f"{value:.3g}" for value in seconds]
        line += [_megabytes(row["checkpoint_bytes"]), _megabytes(row["export_bytes"])]
        line.append(f"{row['peak_megabytes']:,.0f} ({max(peaks, key=peaks.get)})")
        lines.append(line)
    return names, lines


def _bank(rows: list[dict]) -> str:
    return f"{markdown(*bank_cells(rows))}\n{markdown(('phase', 'operation'), PHASES.items())}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def step_cost_cells(rows: list[dict]) -> Cells:
    """Table of the time of the operation over N, K and B."""
    lines = [
        (
            f"{row['samples']:,}",
            f"{row['classes']:,}",
            f"{row['batch']:,}",
            _megabytes(row["bank_bytes"]),
            microseconds(row),
            f"{row['ns_per_element']:.2f}",
        )
        for row in rows
    ]
    return ("N", "K", "B", "bank, MB", "microseconds", "ns an element of B x K"), lines


SECTIONS = {
    "ranks": Section(
        "Processes together on the CPU",
        "Training with ALR in gloo processes that share the CPUs and one batch. To one process: "
        "images/s relative to one process with as many threads as each of these has. Alone: the "
        "same step in the same processes, all busy, without communication; together adds: the "
        "difference, which includes waiting for other processes. Sum of gradients: the all-reduce "
        "by itself.",
        "scaling",
        _ranks,
    ),
    "bank": Section(
        "A label bank as it grows",
        "Seconds of each phase; of an update milliseconds. Saving and export can be compared with "
        "plain writing. Peak: largest rise of the anonymous memory of the process, and the phase "
        "in which it occurs; it does not include files mapped into memory. Files that were just "
        "written are in the page cache if they fit.",
        "scaling",
        _bank,
    ),
    "step_cost": Section(
        "The operation over N, K and B",
        "Loss and gradient in one pass (`alr_loss_and_grad`), float32. The batches use all rows of "
        "the bank, or a million of them, before a row repeats.",
        "scaling",
        lambda rows: markdown(*step_cost_cells(rows)),
    ),
}
