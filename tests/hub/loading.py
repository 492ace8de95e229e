"""Load from the Hub as a run does, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any


def weights_hash(weights: dict[str, Any]) -> str:
    """Equal for bitwise equal weights only."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()


def load(model: tuple[str, str | None] | None, data: tuple[str, str | None, str | None] | None) -> int:
    """Load a backbone (id, revision) and a data set (id, revision, configuration) as a run does; print both as JSON."""
    from mixer_finetune import UserError, load_backbone
    from mixer_finetune.data.sources import open_source
    from mixer_finetune.hub import retry

    retry.FIRST_WAIT = 0.05  # the real commands are there to wait as long as users do

    found: dict[str, Any] = {}
    try:
        if data:
            source = open_source(data[0], revision=data[1], config=data[2])
            found["data"] = {
                "commit": source.revision,
                "images": {role: len(split) for role, split in source.splits.items()},
            }
        if model:
            backbone = load_backbone(model[0], revision=model[1])
            weights = weights_hash(backbone.state_dict())
            found["model"] = {"commit": backbone.origin["revision"], "weights": weights, "labels": backbone.label_names}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 0
