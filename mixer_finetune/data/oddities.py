"""Images of the wrong kind: blank, much smaller or much longer than the others, or not decodable at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mixer_finetune.data.facts import Facts

# Standard deviation in grey levels below which there is nothing to be seen on an image.
BLANK = 3.0
# How many times smaller or longer than the median an image is odd.
TIMES_SMALLER, TIMES_LONGER = 4.0, 2.0
# An image no longer than this, as a ratio of its sides, is never odd for it.
LONG = 2.5
# Where so many have one size, one of another is odd.
_ONE_SIZE = 0.99


def oddities(facts: list[Facts]) -> Iterator[tuple[str, int, float, str]]:
    """What is odd about images of some splits.

    Args:
        facts: Of each split.

    Yields:
        The kind ("broken", "blank", "size", "shape"), the image by its position in all splits, one after the other, a
        score, the oddest the highest, and what it is, in words.
    """
    sizes = np.concatenate([each.sizes for each in facts]).astype(np.float64)
    contrast = np.concatenate([each.contrast for each in facts])
    start = 0
    for each in facts:
        yield from (("broken", start + i, 0.0, reason) for i, reason in sorted(each.bad.items()))
        start += len(each.sizes)
    good = np.flatnonzero(sizes.min(1, initial=1.0) > 0)
    if not len(good):
        return
    for i in good[contrast[good] < BLANK].tolist():
        yield "blank", i, -float(contrast[i]), f"one colour: its grey levels spread by {contrast[i]:.1f} of 255"
    shorter, longer = sizes.min(1), sizes.max(1)
    ratio = longer / np.maximum(shorter, 1)
    width, height = np.median(sizes[good], axis=0)
    middle, usual = np.median(shorter[good]), np.median(ratio[good])
    one_size = np.mean((sizes[good] == (width, height)).all(1)) >= _ONE_SIZE
    for i in good.tolist():
        shape = f"{sizes[i, 0]:.0f} x {sizes[i, 1]:.0f} px, where {'nearly all have' if one_size else 'the median is'}"
        shape += f" {width:.0f} x {height:.0f}"
        if ratio[i] > max(LONG, TIMES_LONGER * usual):
            yield "shape", i, float(ratio[i] / usual), shape
        elif shorter[i] < middle / TIMES_SMALLER or (one_size and tuple(sizes[i]) != (width, height)):
            yield "size", i, float(middle / shorter[i]), shape
