"""Label issues from predictions of any origin: of a label bank, a finished run, cross-validation.

issues = find_issues(labels, probabilities, class_names=names)
print(issues)                    # noise rate and the most suspicious samples
issues.to_csv("issues.csv")      # the table of `alr-fast export`
issues.report("report.html", images=dataset)
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from numbers import Integral
from pathlib import Path
from typing import Any

from alr_fast.errors import UserError
from alr_fast.labels import arguments, fiftyone, label_studio
from alr_fast.labels.scored import ScoredLabels
from alr_fast.labels.table import export, write_marks
from alr_fast.utils.command import need
from alr_fast.utils.files import write_text
from alr_fast.utils.requirements import install_command, missing_modules
from alr_fast.utils.text import percent, printable, size_of_data

LARGEST = 20_000  # samples on a page, the limit of a browser
_SHOWN = 5  # samples in the text of the object

AnyPath = str | os.PathLike[str]


class LabelIssues(ScoredLabels):
    """The samples with a score of suspicion each; made by `find_issues`.

    ``len`` is the number of samples N. Iteration yields the columns of each sample as a dictionary,
    most suspicious first. See `ScoredLabels` for ``scores``, ``order``, ``refined``,
    ``noise_rate``, ``transition`` and ``columns``; scores above 1/2 are suspicious. If the noise
    rate cannot be estimated, it is NaN, ``estimate_problem`` says why, and no score is above 1/2.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for rows in self.ranked_pieces():
            yield from self.samples(rows)

    def to_csv(
        self, path: AnyPath, *, soft: bool = False, most_suspicious_first: bool = True
    ) -> None:
        """Writes the table as CSV, which `alr-fast train --labels` reads.

        Args:
            path: The file; an existing one is replaced.
            soft: Whether to add the probabilities of all classes.
            most_suspicious_first: Order by suspicion, ties by id; else in the order of the samples.

        Raises:
            UserError: The file cannot be written.
        """
        file = _with_suffix(path, ".csv")
        export(self, file, soft=soft, most_suspicious_first=most_suspicious_first)

    def to_parquet(
        self, path: AnyPath, *, soft: bool = False, most_suspicious_first: bool = True
    ) -> None:
        """Writes the table as Parquet; needs pyarrow. Arguments and errors as for `to_csv`."""
        file = _with_suffix(path, ".parquet")
        export(self, file, soft=soft, most_suspicious_first=most_suspicious_first)

    def to_pandas(self, *, soft: bool = False, most_suspicious_first: bool = True) -> Any:
        """The table as a `pandas.DataFrame`; needs pandas.

        Args:
            soft: Whether to add the probabilities of all classes, as columns ``p0``, ``p1``, ...
            most_suspicious_first: See `to_csv`.

        Raises:
            UserError: pandas is not installed.
        """
        if missing_modules(["pandas"]):
            command = install_command(["pandas"])
            raise UserError(f"to_pandas needs pandas, not installed: {command}")
        import pandas

        rows = self.order if most_suspicious_first else None
        columns = self.columns(rows, soft=soft)
        probabilities = columns.pop("probabilities", None)
        if probabilities is not None:
            columns |= {f"p{k}": probabilities[:, k] for k in range(self.num_classes)}
        return pandas.DataFrame(columns)

    def write_marks(self, path: AnyPath, sample_ids: object, labels: object) -> None:
        """Writes labels that people chose, of `alr_fast.labels.read_label_studio` for example, as
        a CSV table for `alr-fast train --labels`.

        Args:
            path: The file; an existing one is replaced.
            sample_ids: Ids of some samples, integers [M].
            labels: The class that was chosen for each, integers [M].

        Raises:
            UserError: An id or a class is unknown, or the file cannot be written.
        """
        ids = arguments.as_integers(sample_ids, "sample_ids")
        chosen = arguments.as_integers(labels, "labels")
        write_marks(self, _with_suffix(path, ".csv"), ids, chosen)

    def report(
        self,
        path: AnyPath,
        images: object = None,
        text: object = None,
        table: object = None,
        *,
        title: str = "Suspicious labels",
        most: int = 500,
    ) -> None:
        """Writes a page with the most suspicious samples, to look at and to mark. Its marks, as
        CSV, are read by `alr_fast.labels.read_marks` and `alr-fast train --labels`.

        The page is one file that needs no network. Needs the extra ``report``. Sequences are read
        by position in the arrays that `find_issues` got, functions are called with a sample id.

        Args:
            path: The file; an existing one is replaced.
            images: A data set whose items are images or tuples that begin with one, a function of
                an id, a list of files or images, or an array [N, ...]. An image is a PIL image, the
                path or the bytes of a file, or an array or tensor, [H, W], [H, W, C] or [C, H, W],
                uint8 or from 0 to 1 (other values are stretched to that range).
            text: A list of texts, or a function of an id.
            table: The features of each sample: a `pandas.DataFrame`, a dictionary of columns, or
                an array [N, F].
            title: Heading of the page.
            most: Largest number of samples, up to 20,000.

        Raises:
            UserError: A source has another number of samples, a package is not installed, or the
                file cannot be written.
        """
        _check_most(most, LARGEST)
        file = Path(path)
        if not file.absolute().parent.is_dir():
            raise UserError(f"no folder {file.parent}; make it first", argument="path", value=path)
        need(("jinja2", "plotly", "itables", "PIL"), "report", what="the report")
        from alr_fast.labels.report.content import make_report
        from alr_fast.labels.report.page import render
        from alr_fast.labels.report.views import Views

        views = Views.of(self, images=images, text=text, table=table)
        write_text(file, render(make_report(self, views, title=title, most=most)))

    def to_label_studio(
        self,
        path: AnyPath,
        images: object = None,
        text: object = None,
        *,
        most: int | None = None,
    ) -> None:
        """Writes tasks for Label Studio with the refined labels as predictions, most suspicious
        first. For a suspicious sample whose refined label is the given one, the prediction is the
        next most probable class. Its labelling interface is
        `alr_fast.labels.label_studio.interface`; `alr_fast.labels.read_label_studio` reads the
        result of the labelling.

        Args:
            path: JSON file; an existing one is replaced.
            images: Address of each image, as Label Studio opens it (``/data/local-files/?d=...``,
                ``https://...``, ``s3://...``): a list, or a function of an id. By default the paths
                of the samples.
            text: Text of each sample instead: a list, or a function of an id.
            most: Largest number of tasks; None for all samples.

        Raises:
            UserError: Both or none of the two, ``most`` is below 0, another number of samples, or
                the file cannot be written.
        """
        _check_most(most)
        label_studio.write_tasks(self, Path(path), images=images, text=text, most=most)

    def to_fiftyone(self, path: AnyPath, images: object = None, *, most: int | None = None) -> None:
        """Writes a folder that FiftyOne imports (type ``FiftyOneImageClassificationDataset``): the
        labels that `to_label_studio` predicts, with the columns of the table as attributes.

        Args:
            path: Folder for ``labels.json`` and ``data.json``, made if it is missing.
            images: File of each image: a list, or a function of an id. By default the paths of the
                samples.
            most: Largest number of samples; None for all.

        Raises:
            UserError: There are no files of images, ``most`` is below 0, another number of
                samples, or the folder cannot be written.
        """
        _check_most(most)
        fiftyone.write_dataset(self, Path(path), images=images, most=most)

    def __repr__(self) -> str:
        title, head, rows = self._shown()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        ]
        return "\n".join((title, *lines)) if rows else title

    def _repr_html_(self) -> str:
        title, head, rows = self._shown()
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        return (
            f"<p>{escape(title)}</p><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody>"
            "</table>"
        )

    def _shown(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, column names and the most suspicious samples, as texts."""
        title = f"LabelIssues: {size_of_data(len(self), self.num_classes)}, "
        if self.estimate_problem:
            title += f"noise rate not estimated: {self.estimate_problem}; the highest scores:"
        else:
            title += (
                f"estimated noise rate {percent(self.noise_rate)}, {self.suspicious:,} suspicious"
            )
        head = ["id", "given", "refined", "score"]
        if self.paths is not None:
            head.append("path")
        rows = []
        for sample in self.samples(self.order[:_SHOWN]):
            row = [str(sample["id"]), sample["given_name"], sample["refined_name"]]
            row += [f"{sample['score']:.3f}", *([sample["path"]] if self.paths is not None else [])]
            rows.append([_one_line(cell) for cell in row])
        return title, head, rows


def find_issues(
    labels: object,
    probabilities: object,
    history: Mapping[str, Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    paths: Sequence[Any] | None = None,
    sample_ids: object = None,
    clean_labels: object = None,
    rows_may_sum_to_less: bool = False,
    given_share: float | None = None,
) -> LabelIssues:
    """Finds the labels that are probably wrong.

    The probabilities are best those of a model that has not memorised the labels: a label bank, or
    predictions for samples that the model was not trained on (cross-validation). They are read in
    pieces and not copied: do not change them while the result is in use.

    Args:
        labels: Given labels, integers [N] or [N, 1]: a tensor, an array or a list.
        probabilities: [N, K], rows that sum to one: a tensor of any floating type, an array,
            possibly memory-mapped, or lists. A row of zeros stands for a sample without a
            prediction; it keeps its label.
        history: Statistics of training, as `alr_fast.bank.history.SampleHistory.means` returns
            them: ``given_loss``, float [N], and ``changes``, int64 [N]. None if unknown: the
            probabilities alone count, and these columns of the table are NaN and 0.
        class_names: Names of the K classes; by default their numbers.
        paths: Path, or any other name, of each sample.
        sample_ids: Stable id of each sample, unique integers [N]; by default its position.
        clean_labels: True labels [N], if known, to compare with.
        rows_may_sum_to_less: Accept rows that sum to less than one, and scale them: those of the
            bank of early-learning regularisation, which starts at zero.
        given_share: How much of each row is still its given label: 0 for predictions,
            `LabelBank.given_share` for the rows of a bank. None if unknown: the noise rate is then
            not estimated if every row has its given label with more than 1/2.

    Returns:
        The samples with their scores.

    Raises:
        UserError: An argument is wrong; the message names it, the value, and how to fix it.
    """
    (n, k), read = arguments.read_probabilities(probabilities, scaled=not rows_may_sum_to_less)
    true = None
    if clean_labels is not None:
        true = arguments.class_numbers(clean_labels, "clean_labels", n, k)
    return LabelIssues(
        sample_ids=arguments.ids_of_samples(sample_ids, n),
        labels=arguments.class_numbers(labels, "labels", n, k),
        class_names=arguments.names_of_classes(class_names, k),
        history=arguments.read_history(history, n),
        read=read,
        paths=arguments.paths_of_samples(paths, n),
        clean_labels=true,
        given_share=arguments.checked_share(given_share),
    )


def _with_suffix(path: AnyPath, suffix: str) -> Path:
    file = Path(path)
    if file.suffix != suffix:
        raise UserError(f"name a file that ends with {suffix}", argument="path", value=path)
    return file


def _check_most(most: Any, largest: int | None = None) -> None:
    """Refuses a largest number of samples that is none; None stands for all unless limited."""
    if most is None and largest is None:
        return
    whole = isinstance(most, Integral) and not isinstance(most, bool)
    if not whole or int(most) < 0 or (largest is not None and int(most) > largest):
        limits = "be 0 or more, or None" if largest is None else f"lie between 0 and {largest}"
        raise UserError(f"must {limits}, an integer", argument="most", value=most)


def _one_line(text: str) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= 60 else f"{text[:59]}\N{HORIZONTAL ELLIPSIS}"
