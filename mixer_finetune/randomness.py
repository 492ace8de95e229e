"""Randomness that no machine changes: counter-based, so that a value depends on its key alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Separate streams of random numbers, so that no two uses share a value.
ORDER, CROP, AUGMENT, DROP_PATH, DEV_SPLIT, BALANCE, FOLDS, SUBSET, MIX, STREAM, SIZE, SWEEP = range(12)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(seed: int, stream: int, step: int, index: NDArray[np.integer], draws: int) -> NDArray[np.uint64]:
    """64 random bits for each index and draw, shape (len(index), draws).

    Args:
        seed: Of the run.
        stream: What the bits are for: one of this module's stream constants.
        step: Epoch or step.
        index: Of the sample, or its position in the global batch; shape (n,).
        draws: How many independent values each index gets.
    """
    with np.errstate(over="ignore"):
        increment = np.uint64(0x9E3779B97F4A7C15)
        key = np.zeros(1, np.uint64)
        for part in (seed, stream, step):
            key = _mix(key + np.uint64(part % 2**64) + increment)
        rows = _mix(key + (np.asarray(index).astype(np.uint64) + np.uint64(1)) * increment)
        return _mix(rows[:, None] + (np.arange(draws, dtype=np.uint64) + np.uint64(1)) * increment)


def uniform(seed: int, stream: int, step: int, index: NDArray[np.integer], draws: int) -> NDArray[np.float64]:
    """Uniform values in [0, 1), shape (len(index), draws); arguments as for `random_bits`."""
    return (random_bits(seed, stream, step, index, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53
