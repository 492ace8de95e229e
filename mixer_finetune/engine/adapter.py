"""What becomes of a run's adapter when it is trained."""

from __future__ import annotations

import logging
import shutil

from mixer_finetune.backbones.adapter_folder import save_adapter_folder
from mixer_finetune.backbones.adapters import adapted_layers, merge_adapter
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.engine.parts import Parts
from mixer_finetune.errors import UserError
from mixer_finetune.runs import RunFolder

log = logging.getLogger(__name__)


def keep_adapter(parts: Parts, run: RunFolder) -> None:
    """Write the adapter on its own, and merge it into the model, so that what is exported is what is evaluated.

    Args:
        parts: Of the run, with the weights that were chosen in the model.
        run: Its folder.
    """
    model = parts.model
    if not adapted_layers(model.backbone):
        return
    if parts.trainer.is_global_zero:
        shutil.rmtree(run.adapter, ignore_errors=True)  # of an earlier, shorter training
        try:
            whole = model.assembled(merged=False)
            save_adapter_folder(run.adapter, whole, model.label_names, _load)
        except UserError as error:
            log.info(f"note       the adapter is kept merged alone: {error.problem}")
    merge_adapter(model.backbone)


def _load(source: str, revision: str | None) -> Backbone:
    return load_backbone(source, revision=revision)
