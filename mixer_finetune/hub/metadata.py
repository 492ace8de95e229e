"""What the card of a model or a data set says in its front matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def card_metadata(card: str | Path | None) -> dict[str, Any]:
    """The front matter of a README.md; empty where there is none, or the file is no card.

    Args:
        card: The file, which need not be there.
    """
    import yaml
    from huggingface_hub import metadata_load

    if card is None or not Path(card).is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
        return {}
