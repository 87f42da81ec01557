import pytest

from alr_fast.utils.text import (
    distinct_names,
    duration,
    encodable,
    error_text,
    is_encodable,
    printable,
    printable_lines,
    rate,
    some_names,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_durations_with_decimals():
    assert duration(29.66, digits=1) == "29.7 s"
    assert duration(59.96, digits=1) == "1 min 00 s"


def test_rates():
    assert [rate(x) for x in (0.25, 9.9, 10.2, 1234.6)] == ["0.2", "9.9", "10", "1,235"]


@pytest.mark.parametrize(
    ("text", "shown", "encodable"),
    [
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600", True),
        ("b\udcff", "b\\xff", True),  # a byte that is not UTF-8, as os.fsdecode writes it
        ("a\ud83d\udcff", "a\\ud83d\\xff", False),
        ("\udd00", "\\udd00", False),
        ("a\x1b[31mb\x07\x9b2J", "a\\x1b[31mb\\x07\\x9b2J", True),  # commands of terminals
        ("two\nlines\r\t", "two\\nlines\\r\\t", True),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066", True),  # shown as exe.jpg
        ("x\u2028y\u0085z", "x\\u2028y\\x85z", True),
    ],
)
def test_texts_that_are_not_unicode(text, shown, encodable):
    assert printable(text) == shown
    assert is_encodable(text) == encodable


def test_only_what_is_shown_is_escaped():
    assert encodable("a\x1b\nb\udcff") == "a\x1b\nb\\xff"
    assert printable_lines("one\ntwo\x1b") == "one\ntwo\\x1b"
    assert printable(printable("\x1b\udcff")) == printable("\x1b\udcff")
    assert some_names(["\x1b", "b", "c", "d"]) == "\\x1b, b, c, ..."
    # Two names that look alike are told apart.
    assert distinct_names(["\x1b", "\\x1b", "\n"]) == [
        "\\x1b (class 0)", "\\x1b (class 1)", "\\n",
    ]  # fmt: skip


def test_the_text_of_an_error_is_one_short_line():
    assert error_text(OSError(2, "No such file")) == "No such file"
    assert error_text(ValueError("two\nlines")) == "two lines"
    assert error_text(ValueError()) == "ValueError"
    text = error_text(ValueError("x" * 100_000))
    assert len(text) == 300
    assert text.endswith("x...")
