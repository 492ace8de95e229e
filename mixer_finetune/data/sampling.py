"""Order and randomness that no machine changes: counter-based, so a value depends on its key alone.

The order of the samples is a function of (seed, epoch); the augmentation of a sample of (seed, epoch, index); drop path
of (seed, step, position in the global batch). How many workers, devices or interruptions there are does not enter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.errors import UserError
from mixer_finetune.randomness import BALANCE, DEV_SPLIT, ORDER, random_bits

# A sample's further copies have keys beyond all indices.
_COPIES = 2**40


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(n) that depends on (seed, epoch) alone."""
    return np.argsort(random_bits(seed, ORDER, epoch, np.arange(n), 1)[:, 0], kind="stable")


def balanced_order(labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """An order in which all classes come equally often, and each sample at least once; of (seed, epoch) alone.

    Each class is repeated to the size of the largest one: whole, as often as that goes, and then those of its samples
    whose turn it is in this epoch.

    Args:
        labels: Class of each sample, (n,).
        seed: Of the run.
        epoch: Counted from 0.

    Returns:
        Indices of samples, (classes * size of the largest class,).
    """
    most = int(np.bincount(labels).max())
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn = members[np.argsort(random_bits(seed, BALANCE, epoch, members, 1)[:, 0], kind="stable")]
        drawn += [members] * (most // len(members)) + [turn[: most % len(members)]]
    chosen = np.concatenate(drawn)
    return chosen[epoch_order(len(chosen), seed, epoch)]


def stratified_split(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the samples in two, each class in the same proportion, by seed alone.

    Args:
        labels: Class of each sample, shape (n,).
        fraction: Share of the second part, 0 to 1; a class of two or more samples keeps one in each part.
        seed: Of the run.

    Returns:
        Indices of the first and of the second part, ascending.
    """
    rank = random_bits(seed, DEV_SPLIT, 0, np.arange(len(labels)), 1)[:, 0]
    second = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        second[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def _occurrence(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry came before, (n,)."""
    at = np.argsort(order, kind="stable")
    new = np.diff(order[at], prepend=-1) != 0
    seen = np.empty_like(order)
    seen[at] = np.arange(len(order)) - np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    return seen


class MicroBatch(NamedTuple):
    """The samples that one device takes at once.

    Attributes:
        epoch: Counted from 0.
        indices: Of the samples, shape (b,).
        first: Position of the first of them in the global batch.
        global_size: Samples in the whole global batch.
        keys: Of the samples, (b,), for what is drawn at random: their indices, and another number for each further copy
            of a sample.
        partner: Whether the first sample is the one before the micro-batch's own, there only to be mixed into them;
            `first` is then the position of the second.
        size: (height, width) of the images, where it is not the backbone's own.
    """

    epoch: int
    indices: NDArray[np.int64]
    first: int
    global_size: int
    keys: NDArray[np.int64]
    partner: bool = False
    size: tuple[int, int] | None = None


class GlobalBatchSampler:
    """The micro-batches of one device, out of global batches that no device count changes.

    An epoch's samples are cut into ceil(n / batch_size) global batches of nearly equal size (so that every sample is
    seen once and no batch is a small remainder), and each global batch into devices x accumulation shares, likewise.

    Args:
        n: Samples in an epoch.
        batch_size: Of the global batch, at most.
        seed: Of the order.
        rank: Of this device.
        world_size: Number of devices.
        accumulate: Micro-batches that a device takes one after the other for one step.
        labels: Class of each sample, to have all classes come equally often; `n` is then the length of a
            `balanced_order`.
        repeats: How often a sample comes in a global batch (repeated augmentation, Hoffer et al. 2020); an epoch then
            has as many steps as ever, of fewer samples.
        partners: Whether each micro-batch begins with the sample before its own, to be mixed into them.
        order: Gives the permutation of an epoch, (n,); `epoch_order` when not given.
        size_of: Gives the size of the images of a step, from the epoch and the step in it.

    Raises:
        UserError: A global batch has fewer samples than there are shares.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        labels: NDArray[np.int64] | None = None,
        repeats: int = 1,
        partners: bool = False,
        order: Callable[[int], NDArray[np.int64]] | None = None,
        size_of: Callable[[int, int], tuple[int, int] | None] | None = None,
    ) -> None:
        self._order = order or partial(epoch_order, n, seed)
        self.labels, self.repeats, self.partners, self._size_of = labels, repeats, partners, size_of
        self.n, self.seed, self.rank, self.world_size, self.accumulate = n, seed, rank, world_size, accumulate
        self.steps = -(-n // batch_size)
        self.epoch = 0
        self.done = 0
        if n // self.steps < world_size * accumulate:
            problem = (
                f"a global batch of {n // self.steps} samples can't be shared by {world_size} devices x {accumulate} "
                "micro-batches"
            )
            raise UserError(problem, advice="raise {batch_size} or use fewer {trainer.devices}")

    def start_at(self, epoch: int, done: int = 0) -> None:
        """Let the next iteration be of that epoch, without its first `done` micro-batches."""
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        return self.steps * self.accumulate

    @property
    def largest(self) -> int:
        """Samples of the largest micro-batch."""
        return math.ceil(math.ceil(self.n / self.steps) / (self.world_size * self.accumulate)) + self.partners

    def __iter__(self) -> Iterator[MicroBatch]:
        return self._micro_batches(self.epoch, self.done)

    def _micro_batches(self, epoch: int, done: int) -> Iterator[MicroBatch]:
        order, keys = self._order_and_keys(epoch)
        shares = self.world_size * self.accumulate
        for micro in range(done, len(self)):
            step, turn = divmod(micro, self.accumulate)
            start, stop = step * self.n // self.steps, (step + 1) * self.n // self.steps
            share, size = turn * self.world_size + self.rank, stop - start
            first, last = share * size // shares, (share + 1) * size // shares
            at = np.arange(start + first - self.partners, start + last)
            if self.partners and first == 0:
                at[0] = stop - 1  # the first of a global batch has the last for its partner
            pixels = self._size_of(epoch, step) if self._size_of else None
            yield MicroBatch(epoch, order[at], first, size, keys[at], self.partners, pixels)

    def _order_and_keys(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of an epoch, (n,), and what their random numbers are drawn by, (n,)."""
        if self.labels is not None:
            order = balanced_order(self.labels, self.seed, epoch)
            return order, order + _COPIES * _occurrence(order)
        order = self._order(epoch)
        if self.repeats == 1:
            return order, order
        bounds = np.arange(self.steps + 1) * self.n // self.steps
        sizes = np.diff(bounds)  # of the global batches, in which a sample's copies lie as far apart as that goes
        distinct = -(-sizes // self.repeats)
        place = np.arange(self.n) - np.repeat(bounds[:-1], sizes)
        copy, which = np.divmod(place, np.repeat(distinct, sizes))
        drawn = order[which + np.repeat(np.cumsum(distinct) - distinct, sizes)]
        return drawn, drawn + _COPIES * copy


class EvaluationSampler:
    """Every sample exactly once over all devices, in batches; device `rank` takes each world_size-th sample."""

    def __init__(self, n: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = np.arange(rank, n, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    @property
    def largest(self) -> int:
        """Samples of the largest batch."""
        return min(self.batch_size, len(self.indices))

    def __iter__(self) -> Iterator[MicroBatch]:
        for start in range(0, len(self.indices), self.batch_size):
            indices = self.indices[start : start + self.batch_size]
            yield MicroBatch(0, indices, 0, len(indices), indices)


class CurrentBatches:
    """The plan of an epoch as it is when the epoch begins.

    Lightning's batch size finders change the batch size after the loader was made.

    Args:
        plan: Gives the plan of now.
    """

    def __init__(self, plan: Callable[[], GlobalBatchSampler]) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self._plan())

    def __len__(self) -> int:
        return len(self._plan())

    @property
    def largest(self) -> int:
        """Samples of the largest micro-batch."""
        return self._plan().largest
