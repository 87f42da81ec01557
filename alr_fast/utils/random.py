"""Independent streams of random numbers for the purposes of a run.

One stream for two purposes correlates them: if labels and a subset were drawn from the same one, a
subset would have only samples with changed labels, or none.
"""

import numpy as np

# Numbers are part of the results of every seed: a new purpose gets a new one, above 0, because
# numpy fills up what seeds a generator with zeros.
_PURPOSES = {
    "noise": (),  # documented: the labels of a seed stay the same
    "order": (1,),
    "augmentation": (2,),
    "hold-out": (0x686F6C64,),
    "subset": (0x73756273,),
    "shards": (0x73686172,),
    "features for testing": (0x74657374,),
    "model": (0x6D6F646C,),
    "class balance": (0x62616C63,),
}


def stream(purpose: str, seed: int, *part: int) -> np.random.Generator:
    """A new generator for one purpose, the same for the same arguments.

    Args:
        purpose: One of those above.
        seed: The seed that the user chose.
        part: What tells parts of the purpose apart: epoch, rank, step.

    Raises:
        KeyError: There is no such purpose.
    """
    return np.random.default_rng([seed, *_PURPOSES[purpose], *part])
