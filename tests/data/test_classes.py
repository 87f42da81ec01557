"""Class names: their order, and which class a written label stands for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alr_fast.data.classes import ClassMap, alike, is_missing, names_of_labels, sort_names
from alr_fast.errors import UserError

TWELVE = tuple(map(str, range(12)))


def test_sort_numeric_names_by_value() -> None:
    assert sort_names(["10", "9", "1", "0", "11"]) == ("0", "1", "9", "10", "11")
    assert sort_names(["10", "9", "x"]) == ("10", "9", "x")
    assert sort_names(["-1", "1"]) == ("-1", "1")
    assert sort_names(["01", "1", "0"]) == ("0", "01", "1")


@pytest.mark.parametrize(
    ("names", "labels", "codes"),
    [
        (("1", "2", "3"), ["2", "3", "1"], [1, 2, 0]),  # not the classes at 2, 3 and 1
        (sorted(TWELVE), ["10", "2"], [2, 4]),
        (TWELVE, ["10", "8"], [10, 8]),
        (("cat", "dog"), ["1", "0"], [1, 0]),
        (("cat", "dog"), ["dog", "0"], [1, 0]),
        (("3", "7"), ["0", "1"], [0, 1]),
        (("0", "1", "x"), ["1", "2"], [1, 2]),  # class 1 stands at 1
        (("1", "2", "3"), np.array([3, 1]), [2, 0]),
        (("1", "2", "3"), np.array([3.0, 1.0]), [2, 0]),
        (("1", "2", "3"), ["3.0", "01"], [2, 0]),
        (("01", "02"), np.array([2, 1]), [1, 0]),
        (("1", "01"), ["01", "1"], [1, 0]),
        (("2.5", "x"), np.array([2.5]), [0]),
        (("nan", "x"), ["nan", "x"], [0, 1]),
        (("caf\u00e9", "x"), ["cafe\u0301", " x "], [0, 1]),
        (("=x", "-y", "z\udcff"), ["'=x", "'-y", "z\ufffd"], [0, 1, 2]),
        (("False", "True"), np.array([True, False]), [1, 0]),
        (("a", "b"), [b"b", b"a"], [1, 0]),
        (("a", "b"), [], []),
    ],
)
def test_label_is_looked_up_by_name_first(names: tuple, labels: object, codes: list[int]) -> None:
    labels = labels if isinstance(labels, np.ndarray) else np.array(labels, dtype=object)
    found = ClassMap(names).codes(labels)
    assert found.dtype == np.int64
    assert found.tolist() == codes


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            ("1", "2", "3"),
            ["1", "0", "2"],
            "labels row 1: label '0' is no class name, so labels would be numbers from 0; but 1 is "
            "class '1' by name and class '2' by number; write class names",
        ),
        (
            ("cat", "dog", "bird"),
            ["cat", "frog"],
            "labels row 1: label 'frog' is not one of the 3 classes (cat, dog, bird); correct or "
            "remove it",
        ),
        (
            ("cat", "dog"),
            ["Cat"],
            "labels row 0: label 'Cat' is not one of the 2 classes (cat, dog); 'cat' is one; "
            "correct or remove it",
        ),
        (("cat", "dog"), ["2"], "label '2' is not one of the 2 classes"),
        (("cat", "dog"), ["-1"], "label '-1' is not one of the 2 classes"),
        (("1", "2"), np.array([1.0, 2.5]), "row 1: label '2.5' is not one of"),
        (
            ("crane", "crane", "x"),
            ["crane"],
            "names the classes 0 and 1; write the number",
        ),
        (("cat", "dog"), ["cat", ""], "row 1: label '' is a missing value; fill it in or remove"),
        (("1", "2"), np.array([1.0, np.nan]), "row 1: label 'nan' is a missing value"),
        (("1", "2", "3"), [0, 3], "3 is class '3' by name and no class by number"),
        (("1", "2"), [1, None], "row 1: label '' is a missing value"),
        (("1", "2"), ["1", "N/A"], "row 1: label 'N/A' is a missing value"),
    ],
)
def test_label_of_no_class_is_refused(names: tuple, labels: object, message: str) -> None:
    labels = labels if isinstance(labels, np.ndarray) else np.array(labels, dtype=object)
    with pytest.raises(UserError) as error:
        ClassMap(names).codes(labels)
    assert message in str(error.value)


def test_numbers_are_refused_where_they_may_not_be_positions() -> None:
    with pytest.raises(UserError, match=r"^list\.csv, line 7: label '0' is not one of"):
        ClassMap(("1", "2")).codes(
            ["0"], where=lambda row: f"list.csv, line {row + 7}", argument=None, positions=False
        )


def test_positions_are_reported() -> None:
    classes = ClassMap(("cat", "dog"))
    assert classes.resolve(["1", "cat"], where=str)[1]
    assert not classes.resolve(["dog", "cat"], where=str)[1]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["3", "1", "2"], ("1", "2", "3")),
        (["10", "5", "9"], ("5", "9", "10")),
        (["3.0", "3", "4.0"], ("3", "4")),
        (["01", "1", "02"], ("1", "02")),
        (["01", "02", "10"], ("01", "02", "10")),
        (["-1", "+1"], ("-1", "1")),
        (["dog", "1", "cat"], ("1", "cat", "dog")),
        (["2.5", "cat"], ("2.5", "cat")),
    ],
)
def test_names_of_labels(labels: list[str], names: tuple) -> None:
    assert names_of_labels(labels, where=str) == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1", "2.5"], "row 1: label '2.5' is a fraction; write integers or class names"),
        (["1", "2e3"], "row 1: label '2e3' is no integer as written; write integers or class"),
        (["0", "1", "-1"], "row 2: label '-1' is below 0"),
        (["cat", "NULL"], "row 1: label 'NULL' is a missing value"),
    ],
)
def test_no_names_of_labels(labels: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        names_of_labels(labels, where="row {}".format)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "names",
    [("Cat", "cat"), ("a b", "ab"), ("caf\u00e9", "cafe\u0301"), ("1", "01"), ("x", "x ")],
)
def test_names_that_look_alike_are_remarked(names: tuple) -> None:
    (line,) = alike([*names, "other"])
    assert repr(names[0]) in line and repr(names[1]) in line


def test_words_for_missing_values_are_remarked() -> None:
    (line,) = alike(["NaN", "cat"])
    assert line.startswith("class 'NaN' has a name that tables use for missing values")
    assert alike(["cat", "dog", "1", "2"]) == []


@given(st.lists(st.text(max_size=5), unique=True, min_size=1, max_size=8), st.randoms())
def test_every_name_stands_for_its_class(names: list[str], random) -> None:
    codes = [random.randrange(len(names)) for _ in range(20)]
    written = np.array([names[code] for code in codes], dtype=object)
    assert ClassMap(names).codes(written).tolist() == codes


@given(st.lists(st.integers(0, 30), min_size=1), st.booleans())
def test_labels_that_define_their_classes_are_these_classes(values: list[int], as_float) -> None:
    written = [f"{value}.0" if as_float else str(value) for value in values]
    names = names_of_labels(list(dict.fromkeys(written)), where=str)
    codes = ClassMap(names).codes(np.array(written, dtype=object), positions=False)
    assert [int(names[code]) for code in codes] == values
    assert not any(map(is_missing, names))
