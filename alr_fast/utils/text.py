"""Numbers, sizes and names as text."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Sequence

LONGEST_ERROR = 300
_NEAR, _LEAST = 0.85, 0.6  # similarity of a typing error, and of a name that is worth naming
_LONGEST_NAME = 4096  # characters, as of a path
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # not of `os.fsdecode`
# Controls of both kinds, separators of lines, marks of the direction of writing.
_COMMANDS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)


def encodable(text: str) -> str:
    """A text whose non-UTF-8 bytes, which paths may contain, are written ``\\xNN``, and other lone
    surrogates, which come from broken JSON, ``\\udNNN``.
    """
    text = _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):x}", text)
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A name as it may be shown: `encodable`, on one line, and without characters that command a
    terminal or change the order of others, which are written ``\\xNN`` or ``\\uNNNN``.

    Only for showing: what is read back is written as it is.
    """
    return _COMMANDS.sub(_escaped, encodable(text))


def printable_lines(text: str) -> str:
    """`printable` for a message, which may have several lines."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_utf8_bytes(data: bytes | bytearray) -> bool:
    """Whether bytes are UTF-8."""
    if data.isascii():
        return True
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def cell_text(value: object) -> str:
    """The value of a cell as a text: bytes as file names, see `os.fsdecode`, empty for None."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


def is_encodable(text: str) -> bool:
    """Whether a text stands for bytes: no lone surrogates but those of `os.fsdecode`."""
    return _LONE_SURROGATE.search(text) is None


def percent(fraction: float | None) -> str:
    """``0.123`` as ``12.3%``; ``-`` for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}%"


def rate(per_second: float) -> str:
    """``1234.5`` as ``1,234``; with one decimal below 10."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"


def duration(seconds: float, *, digits: int = 0) -> str:
    """``12 s``, ``3 min 05 s``, ``3 h 05 min``; ``digits`` are the decimals below a minute."""
    if round(seconds, digits) < 60:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def size_of_data(samples: int, classes: int) -> str:
    """1,437 samples in 10 classes."""
    several = f"{samples:,} sample{'' if samples == 1 else 's'}"
    return f"{several} in {classes:,} class{'' if classes == 1 else 'es'}"


def readable(num_bytes: int) -> str:
    """A number of bytes as ``9.6 GB``, ``340 MB`` or ``12 kB``."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


def shown(line: bytes | str) -> str:
    """A part of a file for a message: quoted, on one line, at most 80 characters."""
    text = line if isinstance(line, str) else line.decode("utf-8", "replace")
    return repr(text if len(text) <= 80 else text[:77] + "...")


def shortened(text: str, longest: int) -> str:
    """A text of at most ``longest`` characters: its beginning and its end."""
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def some_names(names: Sequence[str]) -> str:
    """The first three names, for messages; a table may name anything."""
    shown = [shortened(printable(name[:_LONGEST_NAME]), _LONGEST_NAME) for name in names[:3]]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "")


def distinct_names(names: Sequence[str]) -> list[str]:
    """Class names to show, unambiguous: empty and duplicate ones get the class number."""
    names = [printable(name) for name in names]
    counts = Counter(names)

    def shown(k: int, name: str) -> str:
        if not name.strip():
            return f"class {k}"
        return name if counts[name] == 1 else f"{name} (class {k})"

    return [shown(k, name) for k, name in enumerate(names)]


def error_text(error: BaseException) -> str:
    """The text of an error on one line of at most `LONGEST_ERROR` characters: that of the system
    for an `OSError`. Libraries quote damaged files at length.
    """
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    text = text or type(error).__name__
    return text if len(text) <= LONGEST_ERROR else f"{text[: LONGEST_ERROR - 3]}..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``; did you mean A or B?`` with the nearest of known names, empty if none is near, or if
    there is only one."""
    return or_similar(nearest(word, known)) if len(known) > 1 else ""


def or_similar(names: Sequence[str]) -> str:
    """``; did you mean A or B?``, empty without names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def nearest(word: str, known: Sequence[str], *, typo: bool = True) -> list[str]:
    """The known names that a wrong word may stand for, at most three, the nearest first.

    Args:
        word: The word.
        known: Names, which may have groups before the last part: ``lr`` stands for ``optim.lr``.
        typo: Whether letters may be wrong, if no name has the same words.
    """
    plain = _plain(word)
    words, own = {n: set(_plain(_leaf(n)).split("_")) for n in known}, set(plain.split("_"))
    same = [name for name in known if plain in (_plain(name), _plain(_leaf(name)))]
    longer = [name for name in known if own <= words[name]]  # "sgd_momentum" for "momentum"
    if same or longer or not typo:
        return list(dict.fromkeys([*same, *longer]))[:3]
    ratios = {
        name: max(_ratio(plain, _plain(name)), _ratio(_leaf(plain), _plain(_leaf(name))))
        for name in known
    }
    best = max(ratios.values(), default=0.0)
    closest = [name for name in known if ratios[name] == best]
    shorter = [name for name in known if words[name] <= own]  # "epochs" for "num_epochs"
    found = shorter if shorter and best < _NEAR else closest if best >= _LEAST else []
    begun = [name for name in known if len(plain) > 1 and _plain(_leaf(name)).startswith(plain)]
    return (found or begun)[:3]


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _ratio(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()
