"""What was typed behind `fit`, `validate` and `test`, brought to the form that the parser takes.

Files come first (recipes, then configurations, in their order), so that what is typed wins wherever it stands. A class
that is named for model or data is taken out: the parser is made for it. Flags may stand without a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixer_finetune.engine.recipes import find_recipe
from mixer_finetune.errors import UserError
from mixer_finetune.plain_yaml import read_plain

GROUPS = ("model", "data", "trainer")
# Lightning's names of the model's own options.
ALIASES = {"optimizer": "model.optimizer", "lr_scheduler": "model.lr_scheduler"}
# What others call an option; a leading dash is left to the command line.
HABITS = {
    "epochs": "trainer.max_epochs",
    "max_epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "steps": "trainer.max_steps",
    "seed": "seed_everything",
    "lr": "model.lr",
    "learning_rate": "model.lr",
    "opt": "model.optimizer",
    "weight_decay": "model.weight_decay",
    "model_name": "model.backbone",
    "backbone": "model.backbone",
    "img_size": "model.image_size",
    "imgsz": "model.image_size",
    "image_size": "model.image_size",
    "patience": "early_stopping",
    "ema": "model.ema_decay",
    "model_ema_decay": "model.ema_decay",
    "teacher": "model.teacher",
    "layer_wise_decay": "model.layer_decay",
    "rho": "model.sam_rho",
    "lora": "model.adapter",
    "lora_r": "model.adapter_rank",
    "lora_rank": "model.adapter_rank",
    "lora_alpha": "model.adapter_alpha",
    "sampler": "data.sampling",
    "freeze": "model.train",
    "smoothing": "model.label_smoothing",
    "drop_path": "model.drop_path",
    "batch": "data.batch_size",
    "batch_size": "data.batch_size",
    "per_device_train_batch_size": "data.micro_batch_size",
    "workers": "data.num_workers",
    "num_workers": "data.num_workers",
    "dataset": "data.source",
    "data_dir": "data.source",
    "data_path": "data.source",
    "source": "data.source",
    "data.path": "data.source",
    "data.dir": "data.source",
    "data.name": "data.source",
    "gpus": "trainer.devices",
    "devices": "trainer.devices",
    "device": "trainer.accelerator",
    "accelerator": "trainer.accelerator",
    "precision": "trainer.precision",
    "amp": "trainer.precision",
    "fp16": "trainer.precision",
    "bf16": "trainer.precision",
    "trainer.gpus": "trainer.devices",
    "trainer.num_gpus": "trainer.devices",
    "trainer.default_root_dir": "output_dir",
    "default_root_dir": "output_dir",
    "output": "output_dir",
    "checkpoint": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "trainer.resume_from_checkpoint": "ckpt_path",
    "trainer.accumulate_grad_batches": "data.micro_batch_size",
    "accumulate_grad_batches": "data.micro_batch_size",
    "gradient_accumulation_steps": "data.micro_batch_size",
    "push_to_hub": "push",
    "hub_model_id": "push",
}


@dataclass
class Arguments:
    """A command line, taken apart.

    Attributes:
        files: Recipes and configurations, each with its name as typed and its content.
        typed: The options, as the parser takes them.
        recipes: Names of the recipes.
        classes: Class paths given for "model" and "data".
    """

    files: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)

    def sets(self, option: str) -> bool:
        """Whether an option was typed."""
        return any(item.partition("=")[0].rstrip("+") == f"--{option}" for item in self.typed)


def take_apart(arguments: Iterable[str]) -> Arguments:
    """Take a command line apart: its files, its options, its classes.

    Raises:
        UserError: A file can't be read, or an option lacks its value.
    """
    recipes: list[str] = []
    configs: list[str] = []
    typed: list[str] = []
    items = list(arguments)
    while items:
        item = items.pop(0)
        name, equals, value = item.partition("=")
        if name not in ("--recipe", "-r", "--config", "-c"):
            typed.append(item)
            continue
        value = value if equals else items.pop(0) if items else ""
        if not value or (value.startswith("-") and not equals):
            raise UserError(f"{name} needs a value")
        (recipes if name in ("--recipe", "-r") else configs).append(value)
    found = Arguments(recipes=recipes)
    for path in [find_recipe(name) for name in recipes] + [Path(name).expanduser() for name in configs]:
        content = normalised(read_yaml(path))
        found.classes |= take_classes(content)
        found.files.append((str(path), content))
    found.typed = _typed(typed, found.classes)
    return found


def _typed(arguments: list[str], classes: dict[str, str]) -> list[str]:
    """The options, with aliases spelled out and classes taken out into `classes`."""
    typed: list[str] = []
    items = list(arguments)
    while items:
        item = items.pop(0)
        name, equals, value = item.partition("=")
        if match := re.fullmatch(r"--(model|data)(\.class_path)?", name):
            path = value if equals else items.pop(0) if items else ""
            if not path or path.startswith("--"):
                raise UserError(f"{name} needs the path of a class, such as my_module.MyClassifier")
            classes[match[1]] = path
            continue
        name = re.sub(r"^--(model|data)\.init_args\.", r"--\1.", name)
        first = name.removeprefix("--").partition(".")[0].rstrip("+")
        if name.startswith("--") and first in ALIASES:
            name = name.replace(first, ALIASES[first], 1)
        typed.append(f"{name}={value}" if equals else name)
    return typed


def with_flags(typed: list[str], flags: set[str]) -> list[str]:
    """The options with `--flag`, alone or before true or false, as `--flag=true` or `--flag=false`."""
    joined: list[str] = []
    for item in typed:
        if joined and joined[-1] in flags:
            is_value = item.lower() in ("true", "false", "null")
            joined[-1] += f"={item}" if is_value else "=true"
            if is_value:
                continue
        joined.append(item)
    return [f"{item}=true" if item in flags else item for item in joined]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: The file can't be read, does not parse or is not a mapping.
    """
    try:
        config = read_plain(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"the configuration {path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise UserError(f"{path} is not a configuration: expected keys such as model, data and trainer, found a {kind}")
    return config


def normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with Lightning's top-level `optimizer` and `lr_scheduler` among the model's options."""
    moved = {name: config[name] for name in ALIASES if name in config}
    rest = {key: value for key, value in config.items() if key not in ALIASES}
    if moved:
        model = rest.get("model") or {}
        if "init_args" in model:
            rest["model"] = {**model, "init_args": {**model["init_args"], **moved}}
        else:
            rest["model"] = {**model, **moved}
    return rest


def take_classes(config: dict[str, Any]) -> dict[str, str]:
    """Take `class_path` and `init_args` of model and data out of a configuration, which keeps the options."""
    classes = {}
    for group in ("model", "data"):
        options = config.get(group)
        if isinstance(options, str):
            classes[group], config[group] = options, {}
        elif isinstance(options, dict) and isinstance(options.get("class_path"), str):
            classes[group] = options["class_path"]
            rest = {key: value for key, value in options.items() if key not in ("class_path", "init_args")}
            config[group] = {**(options.get("init_args") or {}), **rest}
        elif isinstance(options, dict) and isinstance(options.get("init_args"), dict) and len(options) == 1:
            config[group] = options["init_args"]
    return classes
