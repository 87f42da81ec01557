"""Names of splits, as people call their folders, lists and shards."""

import re

# In the order of preference where a data set has several.
TRAIN = ("train", "training")
TEST = ("test", "testing")
VAL = ("val", "valid", "validation", "dev", "eval")
ROLES = (*TRAIN, *TEST, *VAL)
SPLITS = ("train", "test", "val")  # that a role may be
_SPLIT_OF = dict.fromkeys(TRAIN, "train") | dict.fromkeys(TEST, "test") | dict.fromkeys(VAL, "val")


def role_of(name: str) -> str | None:
    """``train``, ``test`` or ``val`` if this is a name of that split in any case, else None."""
    return _SPLIT_OF.get(name.strip().lower())


def role_in(name: str) -> str | None:
    """The split that a word of this name stands for: ``imagenet-train-000012``; None without one,
    or if there are several."""
    roles = {role_of(word) for word in re.split(r"[^a-z]+", name.lower())} - {None}
    return roles.pop() if len(roles) == 1 else None
