"""Classification by the nearest neighbours, by cosine similarity of the features.

Shapes: n images with labels, m others, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of neighbours that are tried.
COUNTS = (1, 5, 10, 20)
# Images that are compared with all others at once.
_ROWS = 1024


@torch.no_grad()
def neighbours_answers(
    features: Tensor,
    labels: Tensor,
    classes: int,
    others: Tensor,
    counts: Sequence[int] = COUNTS,
    device: torch.device | str = "cpu",
) -> dict[int, Tensor]:
    """What the majority of the k nearest images says; of classes with as many, the one of the lowest number.

    Args:
        features: (n, C) of the images with labels.
        labels: (n,) theirs.
        classes: Of the data.
        others: (m, C) of the images to classify.
        counts: Each k; those above n are left out, but for n itself where none is left.
        device: Where it is computed.

    Returns:
        For each k the class of each image, (m,).
    """
    known, labels = F.normalize(features.to(device), dim=-1), labels.to(device)
    ks = [k for k in counts if k <= len(known)] or [len(known)]
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in torch.split(others, _ROWS):
        nearest = (F.normalize(rows.to(device), dim=-1) @ known.T).topk(max(ks)).indices  # (rows, k)
        said = labels[nearest]
        for k in ks:
            votes = torch.zeros(len(rows), classes, device=said.device)
            votes.scatter_add_(1, said[:, :k], torch.ones_like(said[:, :k], dtype=votes.dtype))
            found[k].append(votes.argmax(-1).cpu())
    return {k: torch.cat(parts) for k, parts in found.items()}
