"""The options of the commands, read from signatures and docstrings without importing torch or Lightning.

Importing those takes seconds, and `--help`, lists and mistakes should answer at once. So the source of MixerClassifier,
ImageDataModule and Lightning's Trainer is parsed, not imported: what their `__init__` takes is what a recipe may set.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import types
import typing
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from mixer_finetune.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent

# What a fine-tuning run wants of Lightning's Trainer where a recipe says nothing else.
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 10,
    "gradient_clip_val": 1.0,  # the paper's global norm
    "deterministic": True,  # a resumed run must end with the same weights
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the data module shares the batches out itself
}
# Set by the run itself, from `seed_everything` and the data.
_DERIVED = {
    "model.seed",
    "data.seed",
    "model.label_names",
    "trainer.default_root_dir",
    "trainer.accumulate_grad_batches",
}
_RUN_OPTIONS: list[tuple[str, Any, Any, str]] = [
    ("seed_everything", int, 0, "Seed of the whole run."),
    ("output_dir", str, "runs", "Where run folders are made."),
    ("name", str | None, None, "Folder of the run inside output_dir; the recipe's name when not given."),
    (
        "weights",
        Literal["last", "best"],
        "last",
        "Which are evaluated and exported: the last ones, or best.ckpt by dev accuracy.",
    ),
    ("push", str | None, None, "Hub repository (user/name) that the finished model is pushed to; checked before training."),
    ("save_every_n_steps", int | None, None, "Steps between checkpoints inside an epoch; one a minute when not given."),
]


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Types and defaults as jsonargparse shows them, the description's lines as they were written."""


@dataclass(frozen=True)
class Option:
    """One parameter of an `__init__`."""

    name: str
    type: Any
    default: Any
    help: str


def class_options(file: Path, class_name: str) -> list[Option]:
    """The parameters of a class's `__init__`, from its source: name, type (Any where it needs an import), default, help."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    init = next(node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    helps = _argument_helps(ast.get_docstring(cls) or "") | _argument_helps(ast.get_docstring(init) or "")
    arguments = init.args
    positional = arguments.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults, strict=True)) + list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    return [
        Option(a.arg, _type_of(a.annotation), _literal(default), helps.get(a.arg, "").replace("%", "%%"))
        for a, default in pairs
    ]


def _type_of(annotation: ast.expr | None) -> Any:
    names = {**vars(typing), "timedelta": timedelta}
    try:
        return Any if annotation is None else eval(ast.unparse(annotation), names)  # our own and Lightning's source only
    except NameError:
        return Any


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _argument_helps(docstring: str) -> dict[str, str]:
    """The Args section of a Google-style docstring, as name -> text."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    helps: dict[str, str] = {}
    if section:
        lines = section[1].splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        name = None
        for line in lines:
            start = re.match(rf" {{{indent}}}(\w+)(?: \(.*?\))?: ?(.*)", line)
            if start:
                name = start[1]
                helps[name] = start[2].strip()
            elif name and line.strip():
                helps[name] += " " + line.strip()
    return helps


def run_parser(prog: str, description: str) -> ArgumentParser:
    """The parser of everything that a recipe or the command line may set on a run."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [options]",
        description=description,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        default_env=False,
    )
    for name, kind, default, text in _RUN_OPTIONS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    spec = importlib.util.find_spec("lightning")
    assert spec is not None and spec.origin is not None
    trainer = Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py"
    for group, file, class_name in (
        ("model", PACKAGE / "training" / "classifier.py", "MixerClassifier"),
        ("data", PACKAGE / "data" / "module.py", "ImageDataModule"),
        ("trainer", trainer, "Trainer"),
    ):
        section = parser.add_argument_group(group)
        for option in class_options(file, class_name):
            key = f"{group}.{option.name}"
            if key in _DERIVED:
                continue
            default, kind = option.default, option.type
            if group == "trainer":
                default = TRAINER_DEFAULTS.get(option.name, default)
            elif key == "data.source":
                kind = str | None  # asked for once recipes and command line are merged
            section.add_argument(f"--{key}", type=kind, default=default, help=option.help)
    return parser


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: The file can't be read, does not parse or is not a mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the configuration {path} can't be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise UserError(
            f"{path} is not a configuration: expected keys such as model, data and trainer, found a {type(config).__name__}"
        )
    return config


def flatten(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A nested configuration as (option, value) pairs; what is no option comes with the longest key that is asked for."""
    groups = {"model", "data", "trainer"}
    for key, value in config.items():
        if key in groups and isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value


def config_errors(parser: ArgumentParser, config: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a configuration: unknown options and values of the wrong type."""
    known = known_options(parser)
    errors = []
    for key, value in flatten(config):
        if key in ("model", "data", "trainer") and not isinstance(value, dict):
            errors.append(f"'{key}' must hold options, got {value!r}")
        elif key not in known:
            errors.append(f"unknown option '{key}'{nearest(key, known)}")
        else:
            try:
                parser.parse_object(_nested(key, value), defaults=False)
            except ArgumentError as error:
                errors.append(plain_error(error, known))
    return errors


def merge(parser: ArgumentParser, files: list[Path]) -> None:
    """Make the values of configuration files, later ones over earlier ones, the parser's defaults.

    Raises:
        UserError: A file can't be read or something in it is wrong; the message names the file.
    """
    for path in files:
        config = read_yaml(path)
        if errors := config_errors(parser, config):
            more = f" (and {len(errors) - 1} more: mixer-finetune recipes validate {path})" if errors[1:] else ""
            raise UserError(f"{path}: {errors[0]}{more}")
        parser.set_defaults(dict(flatten(config)))


def parse(parser: ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """The command line over the parser's defaults, as a nested dict.

    Raises:
        UserError: An unknown option or a value of the wrong type.
    """
    known = known_options(parser)
    arguments, of_classes = _class_arguments(arguments, known)
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if name.startswith("--") and name[2:] not in known and name not in ("--help", "--print_config"):
            raise UserError(f"unknown option {name}{nearest(name[2:], known, '--')}")
    try:
        config = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise UserError(plain_error(error, known)) from error
    for option, values in of_classes.items():
        chosen = config["trainer"][option]
        if isinstance(chosen, str):
            chosen = {"class_path": chosen}
        if not isinstance(chosen, dict):
            raise UserError(f"--trainer.{option}.{next(iter(values))} needs a class to belong to: --trainer.{option} CLASS")
        config["trainer"][option] = {**chosen, "init_args": {**chosen.get("init_args", {}), **values}}
    return config


def _class_arguments(arguments: list[str], known: Any) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Arguments of the classes that the trainer is given (`--trainer.logger.save_dir logs`), apart from the rest."""
    rest: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    items = iter(arguments)
    for item in items:
        name, equals, value = item.partition("=")
        match = re.fullmatch(r"--trainer\.(\w+)\.(?:init_args\.)?(\w+)", name)
        if not match or f"trainer.{match[1]}" not in known:
            rest.append(item)
            continue
        text = value if equals else next(items, None)
        if text is None:
            raise UserError(f"{name} needs a value")
        found.setdefault(match[1], {})[match[2]] = yaml.safe_load(text)
    return rest, found


def known_options(parser: ArgumentParser) -> dict[str, Any]:
    """Option name (without dashes) to its type."""
    return {string[2:]: action for action in parser._actions for string in action.option_strings if string.startswith("--")}


def nearest(name: str, known: Any, prefix: str = "") -> str:
    """What the user may have meant, as the end of an error message."""
    names = list(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not match:  # `lr` for `model.lr`
        match = [full for full in names if full.split(".")[-1] == name.split(".")[-1]][:1]
    return f" (did you mean {prefix}{match[0]}?)" if match else ""


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def plain_error(error: ArgumentError, known: dict[str, Any]) -> str:
    """Jsonargparse's message in one line, naming the option as it is typed."""
    text = " ".join(str(error).split())
    found = re.search(r'(?:Parser key |argument |[Kk]ey )"?(?:--)?([\w.]+)"?:? ?(.*)', text)
    if not found or found[1] not in known:
        return text
    key, detail = found.groups()
    expected = _type_name(getattr(known[key], "_typehint", None) or "a value")
    got = re.search(r"(?:Got|got|Given|given|input) value:? (?!type)(.*?)(?: -|$)", detail)
    return f"--{key} expects {expected}" + (f", got {got[1]}" if got else f": {detail}")


def _type_name(kind: Any) -> str:
    """A type as a user would say it: `int or null`."""
    if kind is type(None):
        return "null"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type_name, typing.get_args(kind))))
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration as YAML, in the order of the options."""
    return yaml.safe_dump(_plain_values(config), sort_keys=False, allow_unicode=True)


def _plain_values(value: Any) -> Any:
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: _plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(inner) for inner in value]
    return str(value) if isinstance(value, Path | timedelta) else value
