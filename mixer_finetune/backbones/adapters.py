"""LoRA and DoRA: trained low-rank updates of frozen linear maps, across tokens and across channels.

A map W becomes W + (alpha / r) B A (LoRA, arXiv 2106.09685); DoRA (2402.09353) then gives each row a trained length m:
m (W + (alpha / r) B A) / |W + (alpha / r) B A|, where no gradient goes through the length that is divided by. B starts
at zero, so that training starts from W. Parameters have the names and shapes that peft gives them around timm's model.
peft itself is not used: its layers map the last axis, and here tokens are the first one.

Shapes: r rank, A (r, in), B (out, r), m (out,); N tokens, M outputs for each channel, B batch, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.tokens import TokenLinear
from mixer_finetune.errors import UserError

DOWN, UP, LENGTH = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
NAMES = {"lora": "LoRA", "dora": "DoRA"}


@dataclass(frozen=True)
class Adapter:
    """What is put beside linear maps.

    Attributes:
        kind: "lora" or "dora".
        rank: r.
        alpha: The update is multiplied by alpha / r.
    """

    kind: str
    rank: int
    alpha: float

    @property
    def factor(self) -> float:
        """On B A."""
        return self.alpha / self.rank


class AdaptedLinear(nn.Linear):
    """A linear map across channels, frozen, with an update. Its weight and bias keep their names.

    Args:
        plain: The map; its parameters are taken, not copied.
        adapter: What is put beside it.
    """

    def __init__(self, plain: nn.Linear, adapter: Adapter) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        plain.requires_grad_(False)
        self.lora_A = _linear(plain.weight.new_zeros(adapter.rank, self.in_features))
        self.lora_B = _linear(plain.weight.new_zeros(self.out_features, adapter.rank))
        self.lora_magnitude_vector: nn.Parameter | None = None
        if adapter.kind == "dora":
            self.lora_magnitude_vector = nn.Parameter(_row_lengths(plain.weight.detach()))
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        length, factor = self.lora_magnitude_vector, self.adapter.factor
        added = factor * F.linear(F.linear(x, self.lora_A.weight), self.lora_B.weight)
        if length is None:
            return F.linear(x, self.weight, self.bias) + added
        return (F.linear(x, self.weight) + added) * (length / self._length()) + self.bias

    def _length(self) -> Tensor:
        """Of the rows of the updated weight, (out,); no gradient goes through it (DoRA, section 4.3)."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            return _row_lengths(_updated(self.weight, self.lora_A.weight, self.lora_B.weight, self.adapter.factor))

    def merged(self) -> nn.Linear:
        """The plain map that this one is."""
        length, factor = self.lora_magnitude_vector, self.adapter.factor
        weight = merged_weight(self.weight, self.lora_A.weight, self.lora_B.weight, length, factor).detach()
        return _linear(weight, self.bias, TokenLinear if isinstance(self, TokenLinear) else nn.Linear)


class AdaptedTokenLinear(AdaptedLinear, TokenLinear):
    """A linear map across tokens, frozen, with an update."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, C) to (M, B, C)."""
        flat, length, factor = x.flatten(1), self.lora_magnitude_vector, self.adapter.factor  # (N, B C)
        added = factor * (self.lora_B.weight @ (self.lora_A.weight @ flat))  # (M, B C)
        if length is None:
            mixed: Tensor = torch.addmm(self.bias[:, None], self.weight, flat) + added
        else:
            mixed = (self.weight @ flat + added) * (length / self._length())[:, None] + self.bias[:, None]
        return mixed.view(self.out_features, *x.shape[1:])


def put_adapter(backbone: Backbone, adapter: Adapter, chosen: Callable[[str], bool], seed: int) -> None:
    """Freeze a backbone and put an adapter beside the linear maps of its blocks that are chosen.

    Args:
        backbone: Without its head.
        adapter: What is put there.
        chosen: Given the name of a weight, whether its map gets one.
        seed: Of the A: uniform in +-1 / sqrt(in), as in peft.

    Raises:
        UserError: It has one already.
    """
    if adapted_layers(backbone):
        raise UserError("the backbone has an adapter already", option="adapter", choices="none")
    backbone.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(backbone.named_modules()):
        if name.startswith("blocks.") and isinstance(module, nn.Linear) and chosen(f"{name}.weight"):
            made = (AdaptedTokenLinear if isinstance(module, TokenLinear) else AdaptedLinear)(module, adapter)
            bound = made.in_features**-0.5
            drawn = torch.empty(made.lora_A.weight.shape).uniform_(-bound, bound, generator=generator)
            with torch.no_grad():
                made.lora_A.weight.copy_(drawn)
            backbone.set_submodule(name, made)


def adapted_layers(backbone: nn.Module) -> dict[str, AdaptedLinear]:
    """The maps of a backbone that have an adapter, by name."""
    return {name: module for name, module in backbone.named_modules() if isinstance(module, AdaptedLinear)}


def merge_adapter(backbone: Backbone) -> None:
    """Put the plain map that it is in the place of each adapted one."""
    for name, module in adapted_layers(backbone).items():
        backbone.set_submodule(name, module.merged())


def merged_copy(backbone: Backbone) -> Backbone:
    """A backbone with plain maps in the place of adapted ones; the same one where there are none."""
    if not adapted_layers(backbone):
        return backbone
    copied = copy.deepcopy(backbone)
    merge_adapter(copied)
    return copied


def check_adapter(backbone: nn.Module, state: Mapping[str, Tensor], factor: float | None) -> None:
    """Refuse weights of a checkpoint that have another adapter than a backbone, or only one of them has.

    Args:
        backbone: To take the weights.
        state: Weights by name.
        factor: On B A; None where there is no adapter.

    Raises:
        UserError: They do.
    """
    layers = adapted_layers(backbone)
    ours = {name: p.shape for name, p in backbone.state_dict().items() if is_adapter(name)}
    theirs = {name.removeprefix("backbone."): p.shape for name, p in state.items() if is_adapter(name)}
    own = next((module.adapter.factor for module in layers.values()), None)
    if (ours, own) != (theirs, factor):
        what = "an adapter, and the model has none" if not ours else "no adapter" if not theirs else "another adapter"
        advice = "give {adapter}, {adapter_rank}, {adapter_alpha} and {train} of its run, or take it as {backbone}"
        raise UserError(f"the checkpoint has {what}", advice=advice)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return name.endswith((f".{DOWN}", f".{UP}", f".{LENGTH}"))


def merged_state(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Weights by name, adapters merged into them.

    Args:
        state: Weights, with those of adapters.
        factor: On B A.
    """
    merged = {name: value for name, value in state.items() if not is_adapter(name)}
    for name in state:
        if name.endswith(f".{DOWN}"):
            module = name.removesuffix(DOWN)
            weight, down, up = state[f"{module}weight"], state[name], state[module + UP]
            merged[f"{module}weight"] = merged_weight(weight, down, up, state.get(module + LENGTH), factor)
    return merged


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, length: Tensor | None, factor: float) -> Tensor:
    """The weight (out, in) of a map with its update, computed in float64.

    Args:
        weight: W (out, in).
        down: A.
        up: B.
        length: m of DoRA.
        factor: On B A.
    """
    plain, a, b = (value.cpu().double() for value in (weight, down, up))  # not every device has float64
    whole = _updated(plain, a, b, factor)
    if length is not None:
        whole = whole * (length.cpu().double() / _row_lengths(whole))[:, None]
    return whole.to(weight)


def _updated(weight: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    return torch.addmm(weight, up, down, alpha=factor)


def _row_lengths(weight: Tensor) -> Tensor:
    return weight.square().sum(1).sqrt()


def _linear(weight: Tensor, bias: nn.Parameter | None = None, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    made = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = bias
    return made
