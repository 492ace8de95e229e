"""Which parameters are trained, and how fast: by their layer, and by what they do.

Layers are counted from the input: the stem is 0, the n blocks are 1 to n, the final norm belongs to the last block, and
the head is n + 1. Names are those of a MixerClassifier: `backbone.stem...`, `backbone.blocks.3...`, `head...`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mixer_finetune.backbones.adapters import Adapter, put_adapter
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.errors import UserError

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_LAST = re.compile(r"last-(\d+)")


def layer_of(name: str, blocks: int) -> int:
    """The layer of a parameter.

    Args:
        name: In a MixerClassifier; what lies outside of the backbone counts as head.
        blocks: n, of the backbone.
    """
    if not name.startswith("backbone."):
        return blocks + 1
    inside = name.removeprefix("backbone.")
    if inside.startswith("stem."):
        return 0
    found = _BLOCK.match(inside)
    return int(found[1]) + 1 if found else blocks


@dataclass(frozen=True)
class Rates:
    """Factors on the learning rate, by layer.

    Attributes:
        blocks: n, of the backbone.
        layer_decay: From one layer to the one before it (arXiv 2106.08254, section 3.2, and ELECTRA, 2003.10555).
        head_lr_factor: On the head alone.
    """

    blocks: int
    layer_decay: float = 1.0
    head_lr_factor: float = 1.0

    def __call__(self, name: str) -> float:
        """The factor of a parameter: layer_decay ** (n + 1 - layer), times the head's."""
        layer = layer_of(name, self.blocks)
        factor: float = self.layer_decay ** (self.blocks + 1 - layer)
        return factor * self.head_lr_factor if layer > self.blocks else factor


def matrices(model: nn.Module) -> set[int]:
    """Ids of the parameters that are weights of linear maps and convolutions; all else are biases, norms and scales.

    They are told by what they are, not by their number of dimensions: ResMLP's affine scales are (1, 1, C).
    """
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def choose_trained(backbone: Backbone, train: str) -> None:
    """Freeze what is not to be trained; the head always is.

    Args:
        backbone: Without its head.
        train: all; head; last-K (the last K blocks and the final norm); norms-biases (norms, biases and scales);
            token-mixing or channel-mixing (those linear maps of all blocks); no-stem (all but the patch embedding).

    Raises:
        UserError: There is no such choice.
    """
    chosen = _chosen(backbone, train)
    for name, parameter in backbone.named_parameters():
        if not chosen(name):
            parameter.requires_grad_(False)


def adapt(backbone: Backbone, adapter: Adapter, train: str, seed: int) -> None:
    """Train an adapter in place of the linear maps that are chosen, and nothing else beside the head.

    Args:
        backbone: Without its head.
        adapter: What is put beside the maps.
        train: all, token-mixing, channel-mixing or last-K.
        seed: Of what it starts from.

    Raises:
        UserError: The weights are fresh.
    """
    if backbone.origin["weights"] == "fresh":
        problem = f"an adapter is for trained weights, and those of {backbone.origin['source']} are fresh"
        raise UserError(problem, option="adapter", choices="none, or change {backbone}")
    put_adapter(backbone, adapter, _chosen(backbone, train), seed)


def check_train(train: str) -> None:
    """Refuse what `choose_trained` does not know, before a backbone is loaded.

    Raises:
        UserError: It is none.
    """
    named = ("all", "head", "norms-biases", "token-mixing", "channel-mixing", "no-stem")
    if train not in named and not _LAST.fullmatch(train):
        problem = f"there is no choice '{train}' of what to train"
        raise UserError(problem, option="train", choices=f"{', '.join(named[:-1])}, no-stem or last-K (such as last-2)")


def _chosen(backbone: Backbone, train: str) -> Callable[[str], bool]:
    check_train(train)
    n = len(backbone.blocks)
    if found := _LAST.fullmatch(train):
        last = int(found[1])
        if not 1 <= last <= n:
            problem = f"{backbone.architecture} has {n} blocks, so the last {last} can't be trained"
            raise UserError(problem, option="train", choices=f"last-1 to last-{n}, or head")
        return lambda name: layer_of(f"backbone.{name}", n) > n - last
    weights = matrices(backbone)
    is_matrix = {name: id(parameter) in weights for name, parameter in backbone.named_parameters()}
    spatial = tuple(f".{end}" for end in backbone.family.sides)  # what mixes tokens has sides that index them
    tokens = {name for name in is_matrix if name.endswith(spatial)}
    linear = {
        f"{module}.{leaf}"
        for module, each in backbone.blocks.named_modules(prefix="blocks")
        if isinstance(each, nn.Linear)
        for leaf, _ in each.named_parameters()
    }
    return {
        "all": lambda name: True,
        "head": lambda name: False,
        "norms-biases": lambda name: not is_matrix[name],
        "token-mixing": lambda name: name in tokens,
        "channel-mixing": lambda name: name in linear - tokens,
        "no-stem": lambda name: not name.startswith("stem."),
    }[train]


def drop_untrained_gradients(model: nn.Module, blocks: int, unfreeze_every: int, step: int) -> None:
    """Gradual unfreezing (ULMFiT, arXiv 1801.06146): drop the gradients of layers whose turn has not come.

    The head is trained from the start, and each `unfreeze_every` steps one layer more, down to the stem. Gradients are
    dropped, not left uncomputed, so that processes which exchange gradients stay in step.

    Args:
        model: Whose parameters' gradients.
        blocks: n, of the backbone.
        unfreeze_every: Steps from one layer to the next.
        step: Optimizer step.
    """
    trained = step // unfreeze_every
    for name, parameter in model.named_parameters():
        if blocks + 1 - layer_of(name, blocks) > trained:
            parameter.grad = None
