"""What jsonargparse, Lightning and Python say of what was typed, as one line that names the option and the reason."""

from __future__ import annotations

import difflib
import re
import traceback
import types
import typing
from collections import abc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mixer_finetune.engine.arguments import HABITS
from mixer_finetune.errors import UserError


def unknown(typed: str, known: Iterable[str]) -> UserError:
    """An option that is not there: what it is called here, else the nearest name.

    Args:
        typed: The option as it stands in the command or file.
        known: The options that there are, without dashes.
    """
    name, known = typed.lstrip("-"), list(known)
    problem = f"unknown option {typed}"
    if name in HABITS:
        return UserError(problem, advice=f"here it is {{{HABITS[name]}}}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # `lr` for `model.lr`
        near = [option for option in known if option.split(".")[-1] == name.split(".")[-1]][:1]
    return UserError(problem, advice=f"did you mean {{{near[0]}}}?" if near else None)


def parsing_error(text: str, actions: Mapping[str, Any]) -> UserError:
    """What jsonargparse says is wrong, in one line.

    Args:
        text: Its message.
        actions: The parser's options by name, without dashes.
    """
    if match := re.match(r"unrecognized arguments: (\S+)", text):
        if not match[1].startswith("-"):
            return UserError(f"'{match[1]}' belongs to no option")
        return unknown(match[1].partition("=")[0].rstrip("+"), actions)
    if match := re.match(r"argument -*([\w.+]+)[^:]*: (.*)", text, re.DOTALL):
        name, reason = match[1], match[2]
        if "expected one argument" in reason:
            return UserError("a value is missing", advice=f"give {{{name}}} one")
    elif match := re.match(r'(?:Validation failed: )?(?:Parser )?[Kk]ey "?([\w.\[\]+]+)"?:?(.*)', text, re.DOTALL):
        name, reason = match[1], match[2]
    else:
        return UserError(" ".join(text.split()))
    option = next((known for known in _prefixes(name) if known in actions), name)
    return UserError(_reason(reason, actions.get(option)), option=option)


def _prefixes(name: str) -> Iterator[str]:
    parts = re.sub(r"\[\d+\]|\+", "", name).split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])


def _reason(text: str, action: Any) -> str:
    """The most telling line of a message about a value."""
    flat = " ".join(text.split())
    if match := re.search(r"Problem with given class_path '([\w.]+)': *(.*?)(?: - | Given value|$)", flat):
        return f"{match[1].rpartition('.')[2]}: {match[2].strip()}"
    value = re.search(r"(?:Given value|Got value|value): (.*?)$", flat)
    got = value[1] if value else ""
    if match := re.search(r"Expected a dot import path string: (\S+)", flat):
        classes = list(_class_names(getattr(action, "_typehint", None)))
        if classes:
            near = difflib.get_close_matches(match[1], classes, n=1)
            words = [word for word in _choices(getattr(action, "_typehint", None))]
            hint = f" (did you mean {near[0]}?)" if near else f"; known are {', '.join(sorted(words + classes))}"
            return f"there is no '{match[1]}'{hint}"
    if nested := re.match(r"NestedArg\(key='(\w+)'", got):
        return f"'{nested[1]}' needs a class that it is an argument of"
    expected = type_name(getattr(action, "_typehint", None)) if action is not None else ""
    if got and expected:
        return f"expected {expected}, got {got}"
    return flat


def _choices(kind: Any) -> Iterator[str]:
    if typing.get_origin(kind) is typing.Literal:
        yield from map(str, typing.get_args(kind))
    elif typing.get_origin(kind) in (typing.Union, types.UnionType):
        for part in typing.get_args(kind):
            yield from _choices(part)


def _class_names(kind: Any) -> Iterator[str]:
    """Names of the classes of Lightning's and torch's that a type takes."""
    subclass: type
    if isinstance(kind, type) and kind.__module__.partition(".")[0] in ("lightning", "torch"):
        for subclass in kind.__subclasses__():
            if not subclass.__name__.startswith("_") and subclass.__module__.partition(".")[0] in (
                "lightning",
                "torch",
            ):
                yield subclass.__name__
            yield from _class_names(subclass)
    for part in typing.get_args(kind) if not isinstance(kind, type) or typing.get_args(kind) else ():
        yield from _class_names(part)


def type_name(kind: Any) -> str:
    """A type as a user would say it: `int or null`."""
    if kind is None:
        return "a value"
    if kind is type(None):
        return "null"
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(word for part in parts for word in type_name(part).split(" or ")))
    if origin is typing.Literal:
        return " or ".join(map(str, parts))
    if origin is tuple:
        return f"[{', '.join(map(type_name, parts))}]"
    if origin is abc.Callable:
        return f"class of {type_name(parts[-1]).split(' or ')[0]}"
    if origin in (list, abc.Sequence, abc.Iterable) and parts:
        return f"list of {type_name(parts[0])}"
    return kind.__name__ if isinstance(kind, type) and not parts else str(kind).replace("typing.", "")


def explained(error: BaseException) -> UserError | None:
    """The line for an error of Lightning's own checks, or a package that is missing; None for any other error."""
    if isinstance(error, ImportError):
        return UserError(" ".join(str(error).split()))
    if isinstance(error, ValueError) and "Problem with given class_path" in str(error):
        return UserError(_reason(str(error), None))
    raised_in = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    parts = ("callbacks", "trainer", "tuner", "loggers", "strategies")
    checks = ["/lightning/fabric/", *(f"/lightning/pytorch/{part}/" for part in parts)]
    known = isinstance(error, RuntimeError | ValueError | TypeError)
    if type(error).__name__ == "MisconfigurationException" or (
        known and raised_in and any(c in raised_in[-1] for c in checks)
    ):
        return UserError(" ".join(str(error).split())[:500])
    return None
