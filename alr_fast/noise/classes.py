"""Classes by name: look-alikes of known data sets, for asymmetric noise, and which classes the
numbers of other noise stand for.
"""

from collections.abc import Sequence

from alr_fast.data.classes import are_numbered_otherwise
from alr_fast.utils.text import printable

_MOST_SHOWN = 4  # classes in a line

# Confusions that people make, too (Patrini et al., CVPR 2017), by class names, for CIFAR-10 and
# handwritten digits.
LOOK_ALIKES = {
    "CIFAR-10": {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    },
    "digits": {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"},
}

# The superclasses of CIFAR-100 and the classes of each, both in the order of their ids, which is
# alphabetical (Krizhevsky 2009; names as in the file "meta" of the data set).
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


def flips_line(kind: str, names: Sequence[str], targets: Sequence[int]) -> str | None:
    """A line about the classes that noise flips, ``pair: class 1 -> 2, 2 -> 3, ...``; None unless a
    class has a number other than its position as its name.

    Args:
        kind: Kind of noise.
        names: Names of the K classes.
        targets: The class that each class is flipped to, K numbers.
    """
    if not are_numbered_otherwise(names):
        return None
    pairs = [f"{printable(names[k])} -> {printable(names[to])}" for k, to in enumerate(targets)]
    return f"{kind}: class {_some(pairs)}"


def rows_line(what: str, names: Sequence[str]) -> str | None:
    """A line about the classes that the rows and columns of a matrix stand for; None unless a class
    has a number other than its position as its name.

    Args:
        what: The matrix.
        names: Names of the K classes.
    """
    if not are_numbered_otherwise(names):
        return None
    rows = [f"{k} is class {printable(name)}" for k, name in enumerate(names)]
    return f"{what}: rows and columns count from 0: {_some(rows)}"


def _some(parts: Sequence[str]) -> str:
    return ", ".join(parts[:_MOST_SHOWN]) + (", ..." if len(parts) > _MOST_SHOWN else "")
