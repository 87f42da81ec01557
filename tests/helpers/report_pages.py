"""Sample pages for the tests of reports."""

import io
import math

import numpy as np
from PIL import Image

from alr_fast.labels.report.model import ClassNoise, Panel, Report, Suspect
from alr_fast.utils.text import printable

ATTACK = (
    "</script><script>window.pwned=1</script><!--<img src=x onerror=window.pwned=1>\u2028&amp;\"'"
)
SHOWN = printable(ATTACK)
NAMES = ("cat", "dog", "frog", ATTACK, "never seen")
MISSING = "cats/0003.jpg: file is cut off after 12 bytes"


def thumbnail(seed: int, size: int = 64, kind: str = "PNG") -> bytes:
    """Some pixels, encoded."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(rng.uniform(3, 12) * x + rng.uniform(3, 12) * y + k) for k in range(3)]
    pixels = (127 * (1 + np.stack(waves, axis=-1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def suspect(id: int, **changes) -> Suspect:
    """Sample ``id``; classes, path and score are derived from the id."""
    values = {
        "path": f"train/{NAMES[id % 3]}/{id:04d}.jpg",
        "given": id % 3,
        "refined": (id + 1 + id % 2) % 3,
        "given_probability": 0.02 + id % 7 / 100,
        "refined_probability": 0.97 - id % 11 / 100,
        "score": round(0.99 - id / 1000, 3),
        "changes": id % 4,
        "image": thumbnail(id, kind=("PNG", "JPEG", "WEBP")[id % 3]),
    }
    values |= changes
    given, refined = values["given"], values["refined"]
    if "others" not in changes:
        third = 3 - given - refined
        others = ((refined, values["refined_probability"]), (third, 0.01))
        values["others"] = others if 0 <= third < 3 and third != given else others[:1]
    proposal = values["others"][0][0] if values["others"] else None
    return Suspect(id=id, **({"proposal": proposal} | values))


def curves(epochs: int = 30) -> list[Panel]:
    """Two panels; one curve has a gap and a warm-up, one a name that looks like HTML."""
    steps = list(range(1, epochs + 1))
    rise = [98 * (1 - math.exp(-e / 6)) for e in steps]
    return [
        Panel(
            "test accuracy",
            "%",
            {
                "ce": (steps, [min(v, 85 - 0.3 * e) for e, v in zip(steps, rise, strict=True)]),
                "alr": (steps, rise),
            },
        ),
        Panel(
            "training loss",
            "",
            {
                "<b>ce</b>": (steps, [2.3 * math.exp(-e / 9) for e in steps]),
                "alr": (steps, [None if e == 4 else 1.9 * math.exp(-e / 12) for e in steps]),
            },
            {"alr": 5},
        ),
    ]


def report(*, suspects: list[Suspect] | None = None, **changes) -> Report:
    """A page of 60 suspects and five classes, one with markup as its name, one without samples."""
    if suspects is None:
        suspects = [suspect(id) for id in range(60)]
        suspects[3] = suspect(3, image=None, image_problem=MISSING)
        suspects[5] = suspect(5, path=f"odd/{ATTACK}.png", given=3, refined=0)
        suspects[7] = suspect(7, path='=HYPERLINK("http://example.org")\n', given=0, refined=2)
    values = {
        "title": "alr on folder, symmetric noise 40 %",
        "facts": [
            ("method", "alr"),
            ("training samples", "1,437"),
            ("labels changed", "34.0%"),
            ("label accuracy", "97.8%"),
            ("epochs", "60"),
            ("test accuracy", "98.1%"),
        ],
        "notes": ["1 of 60 images is missing.", "Curves are of the first process."],
        "class_names": NAMES,
        "panels": curves(),
        "confusion": [
            (0, 0, 400), (0, 1, 31), (0, 2, 12), (1, 0, 4), (1, 1, 380), (1, 2, 90),
            (2, 0, 17), (2, 2, 450), (3, 0, 1), (3, 3, 52),
        ],
        "classes": [
            ClassNoise("cat", 443, 43, 40),
            ClassNoise("dog", 474, 94, 101),
            ClassNoise("frog", 467, 17, 20),
            ClassNoise(ATTACK, 53, 1, None),
            ClassNoise("never seen", 0, 0, 0),
        ],
        "suspects": suspects,
        "samples": 1437,
        "key": "alr_fast:20260131-235959-digits:alr",
        "noun": "images",
    }  # fmt: skip
    return Report(**(values | changes))
