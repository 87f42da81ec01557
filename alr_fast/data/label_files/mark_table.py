"""Marks in a table that the report exported: columns ``mark``, ``label`` and the given label."""

from collections.abc import Mapping, Sequence

from alr_fast.data.label_files.numbering import number_of

MARK = "mark"
KEEP, FIX, UNSURE = "keep", "fix", "unsure"
# The class that a mark selects, and the label before: numbers, and names beside them.
_LABEL, _GIVEN = ("label", "label_name"), ("given", "given_name")
COLUMNS = (MARK, *_LABEL, *_GIVEN)


def wrong_fix(columns: Mapping[str, Sequence[str]]) -> tuple[int, str] | None:
    """Looks for samples that are marked fix without another label.

    Such a mark changes nothing, and whoever set it believes that the label is corrected.

    Args:
        columns: Texts of some rows of a table, [M] each, perhaps without some of the `COLUMNS`.

    Returns:
        The first such row, counted from 0, and what is wrong with it, with the remedy; None if
        there is none.
    """
    marks = [text.strip().lower() for text in columns.get(MARK, ())]
    rows = [row for row, mark in enumerate(marks) if mark == FIX]
    empty = [""] * len(marks)
    texts = {name: columns.get(name, empty) for name in (*_LABEL, *_GIVEN)}
    wrong = [
        row
        for row in rows
        if _is_same(*(tuple(texts[n][row].strip() for n in names) for names in (_LABEL, _GIVEN)))
    ]
    if not wrong:
        return None
    label = next((texts[name][wrong[0]] for name in reversed(_LABEL) if texts[name][wrong[0]]), "")
    more = f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
    what = f"its given label {label}" if label else "no label"
    return wrong[0], (
        f"is marked fix with {what}{more}; choose another class, or change the mark to keep or "
        "unsure"
    )


def _is_same(label: tuple[str, ...], given: tuple[str, ...]) -> bool:
    """Whether a label is the given one, or none at all; each a number or name, and its name."""
    if not any(label):
        return True
    if not any(given):
        return False
    numbers = number_of(label[0]), number_of(given[0])
    if None in numbers:
        return (label[1] or label[0]) == (given[1] or given[0])
    # Where a number or name was changed without the other, `Numbering` says so.
    return numbers[0] == numbers[1] and (not label[1] or not given[1] or label[1] == given[1])
