"""What was typed, recipes and configurations, merged and checked: a LightningCLI."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
import operator
import sys
import typing
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ArgumentParser
from jsonargparse._actions import ActionConfigFile
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.data.reading import BUNDLED
from mixer_finetune.engine.arguments import Arguments, take_apart, with_flags
from mixer_finetune.engine.messages import parsing_error, unknown
from mixer_finetune.engine.named_classes import foreign_in, is_foreign, say_imports
from mixer_finetune.engine.recipes import all_recipes
from mixer_finetune.errors import UserError
from mixer_finetune.training.classifier import MixerClassifier
from mixer_finetune.training.precision import AUTO

register_type(torch.device)  # a default of Lightning's averages, to be written into config.yaml

# What a fine-tuning run wants of Lightning's Trainer where nothing else is said.
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 10,
    "precision": AUTO,
    "gradient_clip_val": 1.0,  # the paper's global norm
    "deterministic": True,  # a resumed run must end with the same weights
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
# Derived from the run, or without effect on a Mixer: not offered.
_NOT_OFFERED = {
    "accumulate_grad_batches",
    "default_root_dir",
    "enable_autolog_hparams",
    "barebones",
    "model_registry",
    "reload_dataloaders_every_n_epochs",
    "sync_batchnorm",
    "use_distributed_sampler",
}


@dataclass(frozen=True)
class RunOptions:
    """Options of the run itself.

    Args:
        seed_everything: Seed of the whole run.
        output_dir: Where run folders are made.
        name: Folder of the run inside output_dir; the recipe's name when not given.
        weights: Which are evaluated and exported: the last ones, best (best.ckpt, by dev accuracy), wise (WiSE-FT: of
            ten on the line from the starting to the last weights the best on the dev split), or lines (LiNeS: the same
            of eleven that undo more of the training the earlier a block comes). With an average of the weights
            (ema_decay), it is exported in their place where it is better on the dev split.
        early_stopping: End the run after so many epochs without a better dev loss or accuracy.
        calibrate: Divide the trained head by a temperature that is fitted on the dev split, so that its probabilities
            can be believed; answers stay the same.
        evaluate_on: Split that the results are of: test (the dev split where there is none), or val, which leaves the
            test split alone.
        push: Hub repository (user/name) that the finished model is pushed to; checked before training.
        save_every_n_steps: Steps between checkpoints inside an epoch; one a minute when not given.
    """

    seed_everything: int = 0
    output_dir: str = "runs"
    name: str | None = None
    weights: Literal["last", "best", "wise", "lines"] = "last"
    early_stopping: int | None = None
    calibrate: bool = True
    evaluate_on: Literal["test", "val"] = "test"
    push: str | None = None
    save_every_n_steps: int | None = None


class _File(ActionConfigFile):
    """A recipe or a configuration, read already: each key is checked before it counts."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Merge its content."""
        self.apply_config(parser, cfg, self.dest, values)


class MixerCLI(LightningCLI):
    """A LightningCLI that knows recipes, and whose model and data may be of classes that the user names.

    Args:
        arguments: What was typed, taken apart.
        base: A configuration that lies under all files.
        imports: Whether foreign classes that files name may be imported. Where not, what names one is left unchecked,
            and stands in `plain` as it was written.

    Attributes:
        classes: Of model and data.
        config: The merged configuration.
    """

    def __init__(self, arguments: Arguments, base: Mapping[str, Any] | None = None, *, imports: bool = True) -> None:
        self.arguments, self.base, self.imports = arguments, dict(base or {}), imports
        self._unread: dict[str, Any] = {}  # options that are left unchecked
        self.classes: dict[str, type[Any]] = {"model": MixerClassifier, "data": ImageDataModule}
        if imports:
            say_imports(arguments.classes.values(), "what was given")
        for group, path in arguments.classes.items():
            if not imports and is_foreign(path):
                continue
            self.classes[group] = _import_class(
                path, pl.LightningModule if group == "model" else pl.LightningDataModule
            )
        if not issubclass(self.classes["model"], MixerClassifier):
            raise UserError(
                f"{arguments.classes['model']} is no subclass of MixerClassifier, which a run needs to export and "
                "report it; in Python, Trainer.fit(it, ImageDataModule(...)) trains any LightningModule"
            )
        super().__init__(
            self.classes["model"],
            self.classes["data"],
            args=[],
            run=False,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=False,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={"exit_on_error": False, "default_env": False},
        )

    # The parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose files are recipes and configurations."""
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument("-c", "--config", "-r", "--recipe", action=_File, help="A YAML file, or a recipe's name.")
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's own options."""
        parser.add_class_arguments(RunOptions)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of model, data and trainer, from their signatures."""
        skip = {"seed", "label_names", "backbone", "source", "preprocessing", "plain_batches"}
        for group, cls in self.classes.items():
            taken = parameters_of(cls)
            for name in ("backbone", "source"):
                if name in taken:
                    default = taken[name].default if isinstance(taken[name].default, str) else None
                    parser.add_argument(f"--{group}.{name}", type=str | None, default=default, help=_help(cls, name))
            parser.add_class_arguments(cls, group, skip=skip & set(taken), fail_untyped=False, instantiate=False)
        parser.add_class_arguments(pl.Trainer, "trainer", skip=_NOT_OFFERED, fail_untyped=False, instantiate=False)
        precision = options_of_parser(parser)["trainer.precision"]
        precision._typehint = Literal["auto"] | precision._typehint
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        for action in parser._actions:
            _try_whole_numbers_first(action)

    @property
    def actions(self) -> dict[str, Any]:
        """The parser's options by name, without dashes."""
        return options_of_parser(self.parser)

    # From arguments to configuration

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Merge base, files and what was typed.

        Raises:
            UserError: Something in them is wrong; the message names the file where it is in one.
        """
        named = [("config.yaml of the run", self.base), *self.arguments.files]
        contents = [self._checked_names(name, content) for name, content in named]
        for (name, _), content in zip(named[1:], contents[1:], strict=True):
            if errors := config_errors(parser, copy.deepcopy(content)):  # jsonargparse changes what it checks
                more = f" (and {len(errors) - 1} more: mixer-finetune recipes validate {name})" if errors[1:] else ""
                raise UserError(f"{name}: {errors[0].problem}{more}", advice=errors[0].advice)
        files = [content for content in contents if content]
        tokens = [part for content in files for part in ("--config", json.dumps(content, default=str))]
        typed = with_flags(
            self.arguments.typed, {f"--{name}" for name, action in self.actions.items() if _is_flag(action)}
        )
        for item in typed:
            if item.startswith("--") and not _belongs(item.partition("=")[0], self.actions):
                raise unknown(item.partition("=")[0].rstrip("+"), self.actions)
        try:
            below = parser.parse_args(tokens)
            self.config = parser.parse_args(tokens + typed)
        except ArgumentError as error:
            raise parsing_error(str(error), self.actions) from error
        # A pinned commit belongs to the source that the file names, not to another one that is typed.
        for group, source in (("model", "backbone"), ("data", "source")):
            now, before = self.config.get(group, {}), below.get(group, {})
            if now.get(source) != before.get(source) and now.get("revision") == before.get("revision"):
                self.config[f"{group}.revision"] = None

    def _checked_names(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """A file's content, when it is said what will be imported for it; or without what would be."""
        foreign = foreign_in(content, lambda option: option in self.actions and _takes_classes(self.actions[option]))
        if self.imports:
            say_imports((path for paths in foreign.values() for path in paths), name)
            return dict(content)
        kept = dict(content)
        for group, cls in self.arguments.classes.items():
            options = content.get(group)
            if is_foreign(cls) and isinstance(options, Mapping):  # whose own options nobody knows
                foreign |= {f"{group}.{key}": [] for key in options if f"{group}.{key}" not in self.actions}
        for option in foreign:
            group, _, key = option.partition(".")
            self._unread[option] = kept[group][key]
            kept[group] = {other: value for other, value in kept[group].items() if other != key}
        return kept

    def _set_seed(self) -> None:
        """Nothing yet: `build` sets it."""

    def instantiate_classes(self) -> None:
        """Nothing yet: a run is checked before anything is built."""

    @property
    def options(self) -> RunOptions:
        """Options of the run itself."""
        return RunOptions(**{field.name: self.config[field.name] for field in fields(RunOptions)})

    def plain(self) -> dict[str, Any]:
        """The configuration in plain values: what `--print_config` prints and config.yaml holds."""
        text = self.parser.dump(self.config.clone(), skip_unset=False, skip_validation=True)
        config: dict[str, Any] = yaml.safe_load(text)
        config.pop("config", None)
        for option, value in self._unread.items():
            group, _, key = option.partition(".")
            typed = config[group].get(key)
            config[group][key] = [*value, *typed] if isinstance(value, list) and isinstance(typed, list) else value
        for group, path in self.arguments.classes.items():
            config[group] = {"class_path": path, "init_args": config[group]}
        return config


def configure(
    arguments: Sequence[str] | Arguments,
    base: Mapping[str, Any] | None = None,
    *,
    needs_data: bool = True,
    imports: bool = True,
) -> MixerCLI:
    """Merge what was typed with recipes and configurations.

    Args:
        arguments: As typed behind the command.
        base: A configuration that lies under all of it.
        needs_data: Whether a data source must be named.
        imports: Whether foreign classes that files name may be imported.

    Raises:
        UserError: Something in it is wrong.
    """
    taken = arguments if isinstance(arguments, Arguments) else take_apart(arguments)
    cli = MixerCLI(taken, base, imports=imports)
    options = cli.options
    if options.name and Path(options.name).name != options.name:
        raise UserError(f"a name is one folder's inside the output folder, got '{options.name}'", option="name")
    cli.config["name"] = options.name or "-".join(Path(name).stem for name in taken.recipes) or "custom"
    if needs_data and "source" in cli.config["data"] and cli.config["data"]["source"] is None:
        named = " and ".join(taken.recipes or [name for name, _ in taken.files])
        problem = f"{named} names no data" if named else "no data"
        advice = "give {data.source} FOLDER, or a Hub id"
        raise UserError(
            problem, advice=advice if named else "give {recipe} (see: mixer-finetune recipes) or {data.source}"
        )
    source = cli.config["data"].get("source")
    if source in all_recipes() and source not in BUNDLED and not Path(source).exists():
        raise UserError(f"'{source}' is a recipe, not data", advice=f"use {{recipe}} {source}")
    clip = cli.config["trainer"]["gradient_clip_val"]
    if clip is not None and clip < 0:
        raise UserError(f"gradient_clip_val must be 0 or more, got {clip}", option="trainer.gradient_clip_val")
    return cli


def _import_class(path: str, base: type[Any]) -> type[Any]:
    """The class of that path; the present folder is searched, too."""
    module, _, name = path.rpartition(".")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        cls = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"the class {path} can't be imported: {error}") from error
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise UserError(f"{path} is no {base.__name__}: expected the path of a class, such as my_module.MyClassifier")
    return cls


def parameters_of(cls: type[Any]) -> Mapping[str, Any]:
    """What its `__init__` takes, with what it passes on to the classes it is derived from."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        found = {**{name: p for name, p in parameters.items() if name != "self"}, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return {name: p for name, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _help(cls: type[Any], name: str) -> str:
    import docstring_parser

    for base in cls.__mro__:
        for parameter in docstring_parser.parse(base.__doc__ or "").params:
            if parameter.arg_name == name:
                return " ".join((parameter.description or "").split()).replace("%", "%%")
    return ""


def options_of_parser(parser: ArgumentParser) -> dict[str, Any]:
    """A parser's options by name, without dashes."""
    return {
        string[2:]: action
        for action in parser._actions
        for string in action.option_strings
        if string.startswith("--") and not string.endswith(".help")
    }


def _try_whole_numbers_first(action: Any) -> None:
    """Have a type of int and float read `1` as int: `limit_test_batches 1` is one batch, `1.0` is all of them.

    Python keeps one `Optional[Union[int, float]]` for both orders, the one that any library made first.
    """
    kinds = typing.get_args(getattr(action, "_typehint", None))
    if int in kinds and float in kinds:
        ordered = sorted(kinds, key=lambda kind: kind is not int)
        action._typehint = functools.reduce(operator.or_, ordered)


def _is_flag(action: Any) -> bool:
    kind = getattr(action, "_typehint", None)
    return kind is bool or kind == bool | None


def _belongs(option: str, actions: Mapping[str, Any]) -> bool:
    """Whether an option, or the class that it is an argument of, is known."""
    name = option.removeprefix("--").rstrip("+")
    if name in actions or name.endswith(".help"):
        return True
    parts = name.split(".")
    owners = (".".join(parts[:length]) for length in range(len(parts) - 1, 1, -1))
    return any(owner in actions and _takes_classes(actions[owner]) for owner in owners)


def _takes_classes(action: Any) -> bool:
    kind = str(getattr(action, "_typehint", ""))
    return any(word in kind for word in ("lightning.", "torch.", "Callable", "Any"))


def config_errors(parser: ArgumentParser, config: Mapping[str, Any], imports: bool = True) -> list[UserError]:
    """Everything that is wrong with a configuration: unknown options and values of the wrong type.

    Args:
        parser: That is to take it.
        config: Nested, as a file holds it.
        imports: Whether classes that it names may be imported to check their arguments.
    """
    known, errors = options_of_parser(parser), []
    for key, value in _flatten(config):
        if key in ("model", "data", "trainer"):
            if value is not None:
                errors.append(UserError(f"'{key}' must hold options, got {value!r}"))
        elif key not in known:
            errors.append(unknown(key, known))
        elif imports or not ("class_path" in str(value) or _takes_classes(known[key]) and "." in str(value)):
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            try:
                parser.parse_object(nested, defaults=False)
            except ArgumentError as error:
                errors.append(parsing_error(str(error), known))
            except (OverflowError, RecursionError) as error:
                errors.append(UserError(f"{key} can't be used: {error}"))
    return errors


def _flatten(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if key in ("model", "data", "trainer") and isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value
