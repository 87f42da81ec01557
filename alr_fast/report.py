"""Writes a page about the suspicious labels of a run.

    alr-fast report runs/latest      # report.html in the folder of the run
    alr-fast report RUN --most 2000 --output FILE

The page is one file that needs no network: summary, curves, confusion of given and refined labels,
noise of each class, and the most suspicious images, to search, filter, sort and mark with keep,
fix, another class or unsure. The browser stores the marks; the page exports them as a table for
`alr-fast train --labels` and `--data.exclude`.
"""

import argparse
import contextlib
import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alr_fast.data.datasets import FORMS
from alr_fast.data.paths import path_option
from alr_fast.errors import UserError, naming_options
from alr_fast.labels.issues import LARGEST, LabelIssues
from alr_fast.labels.report.model import Panel, Report
from alr_fast.labels.table import summary_lines
from alr_fast.training.open_run import NEEDED, add_run_arguments, open_run
from alr_fast.utils.command import CommandParser, exit_status, need, show
from alr_fast.utils.files import open_regular, write_text
from alr_fast.utils.shell import python_command
from alr_fast.utils.text import duration, error_text, percent

if TYPE_CHECKING:
    from alr_fast.labels.report.views import Views

_MOST_BYTES = 64 << 20  # of summary.json and metrics.csv

# Of a file that is unreadable or has another shape.
_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    csv.Error,
)

# Panels of curves: title, unit, name in the records. The share of changed labels is shown only if
# the label accuracy is unknown.
_PANELS = (
    ("test accuracy", "%", "test_accuracy"),
    ("accuracy on held-out samples", "%", "validation_accuracy"),
    ("label accuracy", "%", "label_accuracy"),
    ("changed labels", "%", "labels_changed"),
    ("wrong labels memorised", "%", "mislabelled_memorised"),
    ("training loss", "", "train_loss"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""
    return exit_status(lambda: run(parser().parse_args(argv)))


@naming_options(root="data-root")
def run(options: argparse.Namespace) -> None:
    """Writes the page.

    Raises:
        UserError: A wrong input; nothing is written.
    """
    check(options)
    output = options.output or options.run / "report.html"
    if options.output and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: no folder {output.parent}; make it first")
    from alr_fast.labels.report.page import render
    from alr_fast.labels.report.views import Views

    with open_run(
        options.run, method=options.method, data_root=options.data_root, log=show
    ) as labels:
        views = Views.of(labels, images=None, text=None, table=None)
        report = report_of(options.run, labels, views, most=options.most)
    write_text(output, render(report))
    show(str(output))


def check(options: argparse.Namespace) -> None:
    """Checks options that commands which make a page share, and that its packages are installed.

    Raises:
        UserError: A wrong option, or a missing package.
    """
    if not 0 <= options.most <= LARGEST:
        raise UserError(f"--most {options.most}: must lie between 0 and {LARGEST}")
    need((*NEEDED, "PIL"), "train", what="the report")
    need(("jinja2", "plotly", "itables"), "report", what="the report")


def report_of(run: Path, labels: LabelIssues, views: "Views", *, most: int) -> Report:
    """The content of the page about a run; shows a summary of it.

    Args:
        run: Folder of the run.
        labels: Its labels.
        views: What is shown of a sample.
        most: Largest number of suspects.
    """
    from alr_fast.labels.report.content import make_report
    from alr_fast.labels.report.views import NO_ROOM

    report = make_report(labels, views, **about_run(run, labels), most=most)
    for line in summary_lines(labels):
        show(line)
    if views.image is not None:
        found = sum(s.image_problem in ("", NO_ROOM) for s in report.suspects)
        show(f"{found:,} of {len(report.suspects):,} images found")
    return report


def about_run(folder: Path, labels: LabelIssues) -> dict[str, Any]:
    """What a report says about a run: arguments of `alr_fast.labels.report.content.make_report`.

    Args:
        folder: Folder of the run; without summary.json it is not finished.
        labels: Its labels.
    """
    summary = _read(folder / "summary.json", json.loads, {})
    lines = _read(folder / "metrics.csv", str.splitlines, [])
    run, export = folder.resolve().name, python_command("alr_fast.export", folder.resolve())
    with _naming(folder / "summary.json"):
        facts = _facts(run, summary, labels)
        title = _data_name(summary.get("data", {})) or run
        epochs = int(summary["epochs"]) if summary else None
    with _naming(folder / "metrics.csv"):
        panels = _panels(list(csv.DictReader(lines)))
    return {
        "title": title,
        "facts": facts,
        "notes": [] if lines else ["No curves: the run has no metrics.csv (--log.to csv)."],
        "panels": panels,
        "more": f"--most shows more, `{export}` lists all",
        "missing_images": "If the data was moved, pass --data-root DIR.",
        "key": run,
        "epochs": epochs,
    }


def _data_name(data: Mapping[str, Any]) -> str:
    """The name of a published data set, or of the folder or file of another; may be empty."""
    name, root = str(data.get("name", "")), data.get("root")
    return Path(str(root)).absolute().name if root and name in FORMS else name


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Names the file that has another content than a run writes."""
    try:
        yield
    except _ERRORS as error:
        raise UserError(
            f"{file}: is damaged ({error_text(error)}); restore it, or move it away to make the "
            "report without it"
        ) from error


def _read(file: Path, parse: Callable[[str], Any], missing: Any) -> Any:
    """The content of a file, ``missing`` without it."""
    if not file.is_file():
        return missing
    with _naming(file), open_regular(file, _MOST_BYTES) as opened:
        return parse(opened.read().decode("utf-8"))


def _facts(run: str, summary: Mapping[str, Any], labels: LabelIssues) -> list[tuple[str, str]]:
    facts = [
        ("run", run),
        ("method", labels.method),
    ]
    for method, result in summary.get("methods", {}).items():
        facts.append(_accuracy(method, result))
    noise = summary.get("noise", {})
    if noise.get("kind", "none") != "none":
        facts.append(("injected noise", f"{noise['kind']} {percent(noise['requested_rate'])}"))
    if summary:
        facts.append(("training", f"{summary['epochs']} epochs, {duration(summary['seconds'])}"))
    return facts


def _accuracy(method: str, result: Mapping[str, Any]) -> tuple[str, str]:
    test, held_out = (result.get(f"{name}_accuracy_last") for name in ("test", "validation"))
    if test is None and held_out is not None:
        return f"accuracy on held-out samples, {method}", percent(held_out)
    return f"test accuracy, {method}", "not measured" if test is None else percent(test)


def _panels(records: Sequence[Mapping[str, str]]) -> list[Panel]:
    panels: dict[str, Panel] = {}
    for title, unit, name in _PANELS:
        factor = 100 if unit == "%" else 1
        series: dict[str, tuple[list[int], list[float | None]]] = {}
        warmup: dict[str, int] = {}
        for record in records:
            value = record.get(name)
            if value:
                epochs, values = series.setdefault(record["method"], ([], []))
                epochs.append(int(record["epoch"]))
                number = float(value)
                values.append(factor * number if math.isfinite(number) else None)
                warmup.setdefault(record["method"], 0)
                warmup[record["method"]] += record.get("warming_up") == "True"
        if series and not (name == "labels_changed" and "label_accuracy" in panels):
            panels[name] = Panel(title, unit, series, warmup)
    return list(panels.values())


def parser() -> CommandParser:
    """The arguments of the command."""
    parser = CommandParser(module="alr_fast.report", description=__doc__.splitlines()[0])
    add_run_arguments(parser)
    parser.add_argument(
        "--output", metavar="FILE", type=path_option, help="file to write (default RUN/report.html)"
    )
    add_most(parser)
    return parser


def add_most(parser: CommandParser) -> None:
    """Adds the option that limits the samples on the page."""
    parser.add_argument(
        "--most",
        metavar="N",
        type=int,
        default=500,
        help="suspicious samples on the page (default %(default)s)",
    )


if __name__ == "__main__":
    sys.exit(main())
