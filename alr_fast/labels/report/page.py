"""The page of a report: one HTML file with data, images, code and styles.

`render` turns a `Report` into text. The templates:

    page.html      structure; summary, confusion and classes are plain HTML (Jinja2)
    page.css       colours of both schemes as custom properties, layout, summary and curves
    tables.css     tables, confusion
    suspects.css   marks, filters and cards
    viewer.css     a suspect enlarged
    overrides.css  DataTables, small windows, print
    page.js        helpers, colour scheme, plots (plotly.js), confusion and the table of the classes
    marks.js       marks: storage and CSV
    classes.js     the choice of any class
    cards.js       a card for each suspect: image, text or row of a table, labels, buttons
    viewer.js      a suspect enlarged
    suspects.js    list of suspects; DataTables searches, filters, sorts and paginates

The page contains plotly.js from plotly and DataTables from itables. It loads only the file of an
image that is enlarged, from where the images lie. Its Content-Security-Policy lists the hashes of
the scripts, so that text from a path or a class name cannot run as code even if it were unescaped.
"""

import base64
import hashlib
import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from alr_fast.labels.report.model import Panel, Report, Suspect
from alr_fast.labels.report.thumbnails import image_kind
from alr_fast.utils.text import distinct_names, printable, printable_lines, size_of_data

MATRIX_CLASSES = 30  # with more classes, the page lists pairs instead of a matrix
MAX_PAIRS = 40
_STYLES = ("page", "tables", "suspects", "viewer", "overrides")
_SCRIPTS = ("page", "marks", "classes", "cards", "viewer", "suspects")
# "</script" ends a script element early; after "<!--" and "<script" it does not end at all.
_SCRIPT_BREAKERS = re.compile(r"<(?=!--|/script)", re.IGNORECASE)
# An address with a scheme, or of another server.
_ELSEWHERE = re.compile(r"[^/?#]*:|[/\\]{2}|\s")


def render(report: Report, *, server: Mapping[str, str] | None = None) -> str:
    """Returns the page, which can be written as UTF-8.

    Args:
        report: The content.
        server: Of a page that `alr_fast.labels.report.server` serves: ``marks``, the address that
            takes the marks, and ``file``, the file that they are written to. None for a page that
            is a file.

    Raises:
        ValueError: A class number without a name, an id shared by two suspects, or a thumbnail
            that is neither PNG nor JPEG nor WebP.
    """
    _check(report)
    figures = [_figure(panel) for panel in report.panels]
    # plotly.js is most of the page; pages without plots omit it.
    plotly_js = _script(get_plotlyjs()) if any(figures) else None
    table_js = _script(_library("dt_bundle.js"))
    page_js = _script("\n".join(_template(f"{name}.js") for name in _SCRIPTS))
    scripts = [script for script in (plotly_js, table_js, page_js) if script is not None]
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable_lines(value) if type(value) is str else value,
    )
    environment.filters |= {"thousands": _count, "percent": _percent}
    page = environment.from_string(_template("page.html")).render(
        report=report,
        names=distinct_names(report.class_names),
        panels=[_panel(panel) for panel in report.panels],
        confusion=_confusion(report),
        truth=any(c.wrong is not None for c in report.classes),
        data=_json(_data(report, figures) | {"server": server and dict(server)}),
        served=server is not None,
        policy=_policy(scripts, report, served=server is not None),
        size=size_of_data(report.samples, len(report.class_names)),
        css=Markup("\n".join(_template(f"{name}.css") for name in _STYLES)),
        table_css=Markup(_library("dt_bundle.css")),
        plotly_js=plotly_js,
        table_js=table_js,
        page_js=page_js,
    )
    # Non-UTF-8 file names contain lone surrogates, which cannot be encoded.
    return page.encode("utf-8", "replace").decode("utf-8")


def _check(report: Report) -> None:
    """Refuses inconsistent content."""
    classes = range(len(report.class_names))
    numbers = {k for suspect in report.suspects for k in (suspect.given, suspect.refined)}
    numbers |= {k for suspect in report.suspects for k, _ in suspect.others}
    numbers |= {s.proposal for s in report.suspects if s.proposal is not None}
    numbers |= {k for given, refined, _ in report.confusion for k in (given, refined)}
    nameless = sorted(k for k in numbers if k not in classes)
    if nameless:
        raise ValueError(f"class {nameless[0]} has no name: there are {len(classes)} class names")
    for suspect in report.suspects:
        if suspect.proposal == suspect.given:
            raise ValueError(f"sample {suspect.id}: the given label is proposed in its own place")
        if not _is_file(suspect.address) and _ELSEWHERE.match(suspect.address):
            raise ValueError(f"sample {suspect.id}: {suspect.address!r} is no address of a file")
    ids = Counter(suspect.id for suspect in report.suspects)
    shared = [id for id, count in ids.items() if count > 1]
    if shared:
        raise ValueError(
            f"{ids[shared[0]]} suspects have the id {shared[0]}; marks need unique ids"
        )


def _is_file(address: str) -> bool:
    return address.startswith("file:///")


def _template(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _library(name: str) -> str:
    """A file of the DataTables bundle in itables, which needs no network."""
    return (resources.files("itables") / "html" / name).read_text(encoding="utf-8")


def _script(source: str) -> Markup:
    """Source code that can stand in a script element, as a browser will read it there."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    return Markup(_SCRIPT_BREAKERS.sub(r"\\x3C", source))


def _policy(scripts: Iterable[str], report: Report, *, served: bool) -> str:
    """Content-Security-Policy: these scripts, inline styles, embedded images and the files of
    images of the report, nothing else; and of a page that is ``served`` the marks and images of its
    server."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    own = " 'self'" if served else ""
    files = " file:" if any(_is_file(suspect.address) for suspect in report.suspects) else ""
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; "
        f"img-src data:{files}{own}; {f'connect-src{own}; ' if served else ''}"
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> Markup:
    """JSON for a script element: ASCII without ``<``, which could open or end a tag."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _data(report: Report, figures: list[dict[str, Any] | None]) -> dict[str, Any]:
    """The input of the scripts of the page."""
    return {
        "key": report.key,
        "noun": report.noun,
        "names": list(report.class_names),
        "shownNames": distinct_names(report.class_names),
        "figures": figures,
        "changeEpochs": report.change_epochs,
        "suspects": [
            {
                "id": suspect.id,
                "path": suspect.path,
                "shownPath": printable(suspect.path),
                "given": suspect.given,
                "refined": suspect.refined,
                "givenProbability": _finite(suspect.given_probability),
                "refinedProbability": _finite(suspect.refined_probability),
                "score": _finite(suspect.score),
                "changes": suspect.changes,
                "image": _data_uri(suspect),
                "problem": suspect.image_problem,
                "text": suspect.text,
                "cells": [list(cell) for cell in suspect.cells],
                "others": [[k, _finite(p)] for k, p in suspect.others],
                "proposal": suspect.proposal,
                "address": suspect.address,
            }
            for suspect in report.suspects
        ],
    }


def _finite(value: float | None) -> float | None:
    """The number, or None if JSON cannot represent it."""
    return float(value) if value is not None and math.isfinite(value) else None


def _data_uri(suspect: Suspect) -> str | None:
    if suspect.image is None:
        return None
    kind = image_kind(suspect.image)
    if kind is None:
        raise ValueError(f"thumbnail of sample {suspect.id}: neither PNG nor JPEG nor WebP")
    return f"data:{kind};base64,{base64.b64encode(suspect.image).decode()}"


def _figure(panel: Panel) -> dict[str, Any] | None:
    """The plot for plotly.js, without colours: the page sets those of the colour scheme."""
    curves = {name: _points(*series) for name, series in panel.series.items()}
    if not any(y is not None for points in curves.values() for _, y in points):
        return None
    epochs = [epoch for points in curves.values() for epoch, _ in points]
    short = max(epochs) - min(epochs) < 12
    figure = go.Figure(
        data=[
            go.Scatter(
                x=[epoch for epoch, _ in points],
                y=[y for _, y in points],
                # The legend renders some HTML, including links.
                name=_plain(name),
                # A line of few points is hard to see, of a single point invisible.
                mode="lines+markers" if len(points) <= 12 else "lines",
                hovertemplate=f"%{{y:.4~g}}{panel.unit}",
            )
            for name, points in curves.items()
        ],
        layout=go.Layout(
            template=go.layout.Template(),
            # Ticks at integer epochs only.
            xaxis={"title": {"text": "epoch"}, "tickformat": "d", "dtick": 1 if short else None},
            yaxis={"ticksuffix": panel.unit},
            showlegend=True,
            # Between the last epoch of a warm-up and the next one.
            shapes=[
                {"type": "line", "x0": e + 0.5, "x1": e + 0.5, "yref": "paper", "y0": 0, "y1": 1}
                for e, _ in panel.warmup_ends()
            ],
            annotations=[
                {
                    "text": _plain(text),
                    "x": e + 0.5,
                    "xanchor": "left" if 2 * e < max(epochs) else "right",
                    "yref": "paper",
                    "y": 1,
                    "yanchor": "bottom",
                    "yshift": 16 * number,
                    "showarrow": False,
                }
                for number, (e, text) in enumerate(panel.warmup_ends())
            ],
        ),
    )
    plain: dict[str, Any] = figure.to_plotly_json()
    return plain


def _points(epochs: Iterable[int], values: Iterable[float | None]) -> list[tuple[int, Any]]:
    return [(int(epoch), _finite(v)) for epoch, v in zip(epochs, values, strict=True)]


def _plain(text: str) -> str:
    """Text escaped for plotly.js."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _panel(panel: Panel) -> dict[str, Any]:
    """A panel in words and as a table, for readers who cannot see the plot."""
    curves = {name: dict(_points(*series)) for name, series in panel.series.items()}
    sentences = []
    for name, points in curves.items():
        known = {epoch: value for epoch, value in points.items() if value is not None}
        if not known:
            sentences.append(f"{name}: no values")
            continue
        last = max(known)
        low, high = (choose(known, key=lambda epoch: known[epoch]) for choose in (min, max))
        sentences.append(
            f"{name}: {_value(known[last], panel.unit)} after epoch {last}, "
            f"lowest {_value(known[low], panel.unit)} (epoch {low}), "
            f"highest {_value(known[high], panel.unit)} (epoch {high})"
        )
    ends = [f"{text} after epoch {epoch}" for epoch, text in panel.warmup_ends()]
    epochs = sorted({epoch for points in curves.values() for epoch in points})
    return {
        "title": panel.title,
        "names": list(curves),
        "plotted": any(value is not None for c in curves.values() for value in c.values()),
        "text": f"{panel.title} over the epochs. {'; '.join([*sentences, *ends])}.",
        "rows": [
            (epoch, [_value(points.get(epoch), panel.unit) for points in curves.values()])
            for epoch in epochs
        ],
    }


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.1f}%" if unit == "%" else f"{value:.4g}{unit}"


def _confusion(report: Report) -> dict[str, Any]:
    """Given against refined labels: the matrix, or the most frequent pairs if it is too large."""
    names = distinct_names(report.class_names)
    total: Counter[int] = Counter()
    for given, _, count in report.confusion:
        total[given] += count
    strongest = max((n for given, refined, n in report.confusion if given != refined), default=0)

    def cell(given: int, refined: int, count: int) -> dict[str, Any]:
        share = 0.0 if given == refined or not count else count / strongest
        part = f", {_percent(count, total[given])} of this class" if count else ""
        return {
            "given": given,
            "refined": refined,
            "count": count,
            "share": round(share, 4),
            "text": f"given {names[given]}, refined {names[refined]}: {_count(count)} "
            f"sample{'' if count == 1 else 's'}{part}",
        }

    kept = sum(count for given, refined, count in report.confusion if given == refined)
    view: dict[str, Any] = {"kept": kept, "all": sum(total.values()), "rows": [], "pairs": []}
    view["moved"] = view["all"] - kept
    classes = range(len(names))
    if len(names) <= MATRIX_CLASSES:
        counts = {(given, refined): count for given, refined, count in report.confusion}
        view["rows"] = [[cell(g, r, counts.get((g, r), 0)) for r in classes] for g in classes]
    else:
        moved = [entry for entry in report.confusion if entry[0] != entry[1]]
        view["pairs"] = [
            cell(*entry) for entry in heapq.nlargest(MAX_PAIRS, moved, key=lambda entry: entry[2])
        ]
        view["number"] = len(moved)
    return view


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%"
