"""The size of the training images, step by step: drawn for each batch, one after another over the run, and at its end.

A function of (seed, step), so that devices, workers and interruptions change nothing. The sampler names a step's size,
and the workers crop to it: a smaller image costs less to decode, to move and to train on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mixer_finetune.errors import UserError, check_at_least
from mixer_finetune.randomness import SIZE, uniform

Size = tuple[int, int]
SizeOrder = Literal["drawn", "listed"]


@dataclass(frozen=True)
class SizePlan:
    """Which size each step has.

    Attributes:
        sizes: (height, width) of each.
        order: "drawn": each step has one at random; "listed": one after another, for equal parts of the run.
        last: What the last epochs have: the size of the evaluation.
        last_epochs: How many these are.
        seed: Of the run.
    """

    sizes: tuple[Size, ...]
    order: SizeOrder
    last: Size
    last_epochs: int
    seed: int

    def at(self, step: int, run_steps: int, epoch_steps: int) -> Size:
        """The size of a step.

        Args:
            step: Counted from 0.
            run_steps: Of the whole run.
            epoch_steps: Of an epoch.
        """
        before = max(run_steps - self.last_epochs * epoch_steps, 0)
        if step >= before:
            return self.last if self.last_epochs else self.sizes[-1]
        if self.order == "drawn":
            u = float(uniform(self.seed, SIZE, step, np.zeros(1, np.int64), 1)[0, 0])
            return self.sizes[int(u * len(self.sizes))]
        return self.sizes[step * len(self.sizes) // before]

    @property
    def all(self) -> tuple[Size, ...]:
        """Every size that a step may have."""
        return tuple(dict.fromkeys((*self.sizes, self.last) if self.last_epochs else self.sizes))

    @property
    def together(self) -> tuple[Size, ...]:
        """The sizes that the weights are for at the end of the run: all that were drawn from, to its end."""
        return self.sizes if self.order == "drawn" and not self.last_epochs else ()

    @property
    def largest(self) -> Size:
        """The one with the most pixels."""
        return max(self.all, key=math.prod)

    @property
    def narrowest(self) -> Size:
        """The smallest height and the smallest width."""
        return min(height for height, _ in self.all), min(width for _, width in self.all)

    def described(self) -> str:
        """What it does, in words."""
        shown = ", ".join(map(size_text, self.sizes))
        how = "a size drawn for each batch from" if self.order == "drawn" else "sizes one after another over the run:"
        text = f"{how} {shown} px" if len(self.sizes) > 1 else f"trained at {shown} px"
        return (
            f"{text}; the last {self.last_epochs} epoch(s) at {size_text(self.last)} px" if self.last_epochs else text
        )


def size_text(size: Size) -> str:
    """A size as "224", or "224 x 160" where the sides differ."""
    return " x ".join(map(str, dict.fromkeys(size)))


def make_plan(
    sizes: Sequence[Size] | None, order: SizeOrder, last: Size, last_epochs: int, seed: int
) -> SizePlan | None:
    """A plan; None where all images have the size of the evaluation.

    Raises:
        UserError: It would never train at the size that is evaluated, or says nothing.
    """
    check_at_least(0, final_epochs=last_epochs)
    if order not in get_args(SizeOrder):
        raise UserError(f"unknown size_order '{order}'", option="size_order", choices="drawn or listed")
    if sizes is None:
        if last_epochs or order != "drawn":
            what = "final_epochs" if last_epochs else "size_order"
            raise UserError(f"{what} needs sizes to train at before", advice="give {train_sizes}")
        return None
    if not sizes:
        raise UserError("train_sizes is empty", advice="leave out {train_sizes}")
    if len(set(sizes)) < len(sizes) and order == "drawn":
        raise UserError("a size stands twice in train_sizes, and is drawn as often as any", option="train_sizes")
    if last not in sizes and not last_epochs:
        problem = f"the run is evaluated at {size_text(last)} px, but never trains at that size"
        raise UserError(problem, advice="add it to {train_sizes}, change {image_size}, or give {final_epochs}")
    return SizePlan(tuple(sizes), order, last, last_epochs, seed)
