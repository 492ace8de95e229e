"""Lightning's tips, and its notices about what is meant to be so, kept out of the user's way."""

from __future__ import annotations

import logging
import os
import warnings

_CHATTY = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric")
_FINDERS = "lightning.pytorch.trainer.connectors.checkpoint_connector"  # how they restore what they tried on
_MEANT = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*logging interval.*",
    ".*when logging on epoch level in distributed setting.*",  # metrics are of all processes already
    ".*but CUDA.*|.*GPU available but not used.*",
    ".*`isinstance\\(treespec, LeafSpec\\)`.*",
    ".*Total length of `.*` across ranks is zero.*",
    ".*method of metric .* was called before.*",  # by a process without images; all of them together are looked at
    ".*SWA is currently only supported every epoch.*",  # it puts a schedule by epochs in place
    ".*dataloader is not resumable.*",  # it is, by its own means: see ImageDataModule
    ".*WeightAveraging callback with a model that overrides the configure_model.*",  # nothing is sharded there
)


def quiet() -> None:
    """Leave such notices out from now on."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric",
        _FINDERS,
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _MEANT:
        warnings.filterwarnings("ignore", message=message)
