"""Images that are the same: pixel for pixel by a hash, and nearly by small copies of them.

Two images are near when the Euclidean distance of their standardised small copies (mean 0, norm 1; so brightness and
contrast don't count) is at most a threshold: 0 for the same, sqrt(2) for unrelated ones. The search is exact, and its
memory grows with the number of images: they are sorted into the leaves of a k-d tree on their principal components,
and only leaves within reach of each other are compared, in few components first, which can only make them nearer.

Shapes: n images, d values of a small copy, k components, m pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# A correlation of 0.989: on CIFAR-100 all such pairs are one photo (docs/audit.md).
NEAR = 0.15
# Standard deviation, in grey levels, below which a small copy is noise once it is standardised.
FLAT = 4.0
_TREE, _COMPONENTS = 8, 32
_LEAF = 512
# Leaves that one is compared with at once.
_AT_ONCE = 16
# Copies that are noted of an image: of a thousand frames of a film, not all pairs.
_PARTNERS = 32
_SAMPLE = 20_000
# What rounding in float32 may add to a squared distance.
_ROUNDING = 1e-5


def identical(hashes: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Groups of equal rows, each ascending, in the order of their first.

    Args:
        hashes: (n, bytes); a row of zeros is no hash.
    """
    rows = np.ascontiguousarray(hashes).view([("", np.void, hashes.shape[1])]).ravel()
    _, which, counts = np.unique(rows, return_inverse=True, return_counts=True)
    several = np.flatnonzero((counts[which] > 1) & hashes.any(1))
    order = several[np.argsort(which[several], kind="stable")]
    ends = np.flatnonzero(np.diff(which[order])) + 1
    groups = [group.astype(np.int64) for group in np.split(order, ends) if len(group)]
    return sorted(groups, key=lambda group: int(group[0]))


def near_pairs(
    small: NDArray[np.uint8], threshold: float = NEAR, mirrored: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of images that are nearly the same; of one with very many such, not all.

    Args:
        small: (n, side, side, channels). Those without contrast (`FLAT`) are near to none.
        threshold: Largest distance.
        mirrored: Whether one of the two is taken mirrored, left to right.

    Returns:
        (m, 2), the lower first, and the distance of each pair (m,).
    """
    flat = small.reshape(len(small), -1)
    known = np.flatnonzero(np.concatenate([part.std(1) for part in _parts(flat)]) >= FLAT)
    if len(known) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    basis = _components(flat[known])
    coordinates = _projected(flat[known], basis)
    leaves = _leaves(coordinates[:, :_TREE])
    other = _projected(small[known][:, :, ::-1].reshape(len(known), -1), basis) if mirrored else coordinates
    boxes, turned = _boxes(coordinates, leaves), _boxes(other, leaves)
    counts = np.zeros(len(known), np.int64)
    pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for i, leaf in enumerate(leaves):
        gaps = np.maximum(boxes[0] - turned[1][i], turned[0][i] - boxes[1]).clip(min=0)
        reach = np.flatnonzero(np.square(gaps).sum(1) <= threshold**2 + _ROUNDING)
        reach = reach if mirrored else reach[reach >= i]
        for start in range(0, len(reach), _AT_ONCE):
            against = np.concatenate([leaves[j] for j in reach[start : start + _AT_ONCE]])
            a, b = _within(other[leaf], coordinates[against], threshold)
            a, b = leaf[a], against[b]
            good = (a < b) if mirrored else (a != b)
            good &= (counts[a] < _PARTNERS) | (counts[b] < _PARTNERS)
            a, b = a[good], b[good]
            exact = _distances(small[known[a]], small[known[b]], mirrored)
            a, b, exact = a[exact <= threshold], b[exact <= threshold], exact[exact <= threshold]
            np.add.at(counts, a, 1)
            np.add.at(counts, b, 1)
            found = np.sort(np.column_stack([known[a], known[b]]), 1)
            pairs.append(found)
            distances.append(exact)
    joined, near = np.concatenate(pairs), np.concatenate(distances)
    joined, first = np.unique(joined, axis=0, return_index=True)
    return joined.astype(np.int64), near[first]


def groups_of(pairs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Images that are joined by pairs (m, 2), each group ascending, in the order of their first."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while (above := parent.setdefault(i, i)) != i:
            parent[i] = parent.setdefault(above, above)  # halves the way
            i = parent[i]
        return i

    for a, b in pairs.tolist():
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    members: dict[int, list[int]] = defaultdict(list)
    for i in sorted(parent):
        members[root(i)].append(i)
    return [np.array(group, np.int64) for _, group in sorted(members.items())]


def _parts(rows: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, max(len(rows), 1), 4096):
        yield rows[start : start + 4096].astype(np.float32)


def _standardised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, d) of mean 0 and norm 1."""
    centred = rows - rows.mean(1, keepdims=True)
    result: NDArray[np.float32] = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-6)
    return result


def _components(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The first principal components, (d, k), of a sample spread over the rows (n, d)."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64))
    scatter = sum(part.T @ part for part in map(_standardised, _parts(rows[chosen])))
    _, vectors = np.linalg.eigh(np.asarray(scatter, np.float64))
    return np.ascontiguousarray(vectors[:, ::-1][:, :_COMPONENTS], dtype=np.float32)


def _projected(rows: NDArray[np.uint8], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([_standardised(part) @ basis for part in _parts(rows)])


def _leaves(points: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """The rows in parts of at most `_LEAF`, each cut at the median of the coordinate that spreads widest."""
    leaves, pending = [], [np.arange(len(points))]
    while pending:
        rows = pending.pop()
        if len(rows) <= _LEAF:
            leaves.append(rows)
            continue
        axis = int(np.ptp(points[rows], axis=0).argmax())
        order = rows[np.argsort(points[rows, axis], kind="stable")]
        pending += [order[len(order) // 2 :], order[: len(order) // 2]]
    return leaves


def _boxes(
    coordinates: NDArray[np.float32], leaves: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest coordinates of each leaf, (leaves, k) each."""
    low = np.stack([coordinates[leaf].min(0) for leaf in leaves])
    return low, np.stack([coordinates[leaf].max(0) for leaf in leaves])


def _within(
    rows: NDArray[np.float32], others: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows (a, k) and others (b, k) are within the threshold."""
    ones, more_ones = np.ones((len(rows), 1), np.float32), np.ones((len(others), 1), np.float32)
    left = np.hstack([rows, ones, -np.square(rows).sum(1, keepdims=True) / 2])
    right = np.hstack([others, -np.square(others).sum(1, keepdims=True) / 2, more_ones])
    half_negative_squares = left @ right.T  # one product and one comparison: 512 x 8,192 values cost more than 32 each
    first, second = np.nonzero(half_negative_squares >= -(threshold**2 + _ROUNDING) / 2)
    return first, second


def _distances(first: NDArray[np.uint8], second: NDArray[np.uint8], mirrored: bool) -> NDArray[np.float32]:
    """The distance of each pair, (m,), of small copies (m, side, side, channels)."""
    if mirrored:
        first = first[:, :, ::-1]
    found = [np.empty(0, np.float32)]
    for start in range(0, len(first), 4096):
        pair = [_standardised(x[start : start + 4096].reshape(-1, x[0].size).astype(np.float32))
                for x in (first, second)]  # fmt: skip
        found.append(np.linalg.norm(pair[0] - pair[1], axis=1).astype(np.float32))
    return np.concatenate(found)
