"""Outliers: images far from their nearest neighbours among the features of others.

After Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022 (arXiv 2204.06507).

Shapes: n images, r of a reference, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Neighbours whose mean distance counts.
NEIGHBOURS = 10
# Most images that all are compared with, so that time grows with the number of images, not with its square.
REFERENCE = 50_000
# Above the median, in robust standard deviations. Cosine distances end at about 1, so that few are ever so far.
UNUSUAL = 2.5
_ROWS = 1024


@torch.no_grad()
def neighbour_distances(
    features: Tensor, reference: NDArray[np.int64], device: torch.device | str = "cpu", neighbours: int = NEIGHBOURS
) -> NDArray[np.float32]:
    """The mean cosine distance of each image to its nearest neighbours, itself aside, (n,).

    The mean feature of the reference is subtracted first, which all images have in common.

    Args:
        features: (n, C).
        reference: (r,) which images are compared with, ascending; two or more.
        device: Where it is computed.
        neighbours: Whose distance counts; fewer where there are not as many.
    """
    chosen = features[torch.from_numpy(reference)].to(device)
    mean = chosen.mean(0)
    known = F.normalize(chosen - mean, dim=-1)
    place = torch.full((len(features),), -1)
    place[torch.from_numpy(reference)] = torch.arange(len(reference))
    k = min(neighbours, len(reference) - 1)
    found = []
    for rows, own in zip(torch.split(features, _ROWS), torch.split(place, _ROWS), strict=True):
        near = F.normalize(rows.to(device) - mean, dim=-1) @ known.T  # (rows, r)
        there = torch.nonzero(own >= 0).squeeze(1)
        near[there.to(near.device), own[there].to(near.device)] = -2.0
        found.append((1 - near.topk(k).values).mean(1).cpu())
    return torch.cat(found).clamp(min=0).numpy()


def unusual(distances: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which distances (n,) are far above the others."""
    median = np.median(distances)
    spread = 1.4826 * np.median(np.abs(distances - median))
    result: NDArray[np.bool_] = distances > median + UNUSUAL * max(float(spread), 1e-6)
    return result
