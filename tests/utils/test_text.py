import pytest

from alr_fast.utils.text import duration, is_encodable, printable, rate


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
    ],
)
def test_texts_that_are_not_unicode(text, shown, encodable):
    assert printable(text) == shown
    assert is_encodable(text) == encodable
