"""Runs a compiled function over many items in chunks of one size, so that it compiles once."""

from collections.abc import Callable

import numpy as np


def in_chunks(function: Callable[..., np.ndarray], size: int, *arrays: np.ndarray) -> np.ndarray:
    """Concatenates function(*chunk) over chunks of `size` items along axis 0 of all `arrays`.

    The last chunk is filled with copies of its last item, whose results are dropped: `function`
    must treat every item alone. It sees no other size, since compiling costs more than filling.

    Raises ValueError where the arrays differ in length or have none.
    """
    count = len(arrays[0])
    if not count or any(len(array) != count for array in arrays):
        raise ValueError(f"arrays of {[len(array) for array in arrays]} items where equal, not 0")
    results = []
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        results.append(np.asarray(function(*(array[index] for array in arrays))))
    return np.concatenate(results)[:count]
