"""Commands that are plain functions: words and options come from the signature, help from the docstring."""

from __future__ import annotations

import difflib
import inspect
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any

from mixer_finetune.engine.messages import parsing_error
from mixer_finetune.errors import UserError

PROGRAM = "mixer-finetune"


class Command:
    """A function as a command.

    Parameters without a default are words, as is `*rest`; keyword-only ones are options.

    Args:
        function: Returns the exit status.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.name = function, function.__name__
        parameters = inspect.signature(function).parameters.values()
        self.words = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self.options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run it.

        Raises:
            UserError: A word is missing, or an option is wrong.
        """
        parser = self._parser()
        if "--help" in arguments or "-h" in arguments:
            parser.print_help()
            return 0
        words, typed = self._split(arguments, parser)
        if len(words) < len(self.words) or (len(words) > len(self.words) and not self.rest):
            raise UserError(f"expected: {self.usage}, got {' '.join(words) or 'nothing'}")
        status: int = self.function(*words, **self.parsed(typed, parser))
        return status

    def parsed(self, typed: Sequence[str], parser: Any = None) -> dict[str, Any]:
        """The options by name, with their defaults.

        Args:
            typed: Options in the form --name=value.
            parser: Where it is made already.

        Raises:
            UserError: A value is wrong.
        """
        parser = parser or self._parser()
        try:
            options: dict[str, Any] = parser.parse_args(typed).as_dict()
        except ArgumentError as error:
            raise parsing_error(str(error), {action.dest: action for action in parser._actions}) from error
        return options

    def print_help(self, usage: str) -> None:
        """Show the help with that usage."""
        parser = self._parser()
        parser.usage = f"{PROGRAM} {usage}"
        parser.print_help()

    @property
    def usage(self) -> str:
        """The command with its words."""
        words = [word.upper() for word in self.words] + ([f"[{self.rest.upper()} ...]"] if self.rest else [])
        return " ".join([self.name, *words])

    def spell(self, option: str) -> str:
        """A parameter as it is typed here; one that only `fit` has, as it is typed there."""
        name = option.rpartition(".")[2]
        if name in self.options:
            return f"--{name}"
        if name in self.words or name == "backbone":
            return (name if name in self.words else self.words[0]).upper()
        return f"fit's --{option}"

    def _parser(self) -> Any:
        import docstring_parser
        from jsonargparse import ArgumentParser

        described = docstring_parser.parse(self.function.__doc__ or "")
        helps = {p.arg_name.lstrip("*"): " ".join((p.description or "").split()) for p in described.params}
        text = " ".join(filter(None, [described.short_description, described.long_description]))
        words = [f"  {word.upper():<8} {helps.get(word, '')}" for word in [*self.words, *filter(None, [self.rest])]]
        parser = ArgumentParser(
            prog=f"{PROGRAM} {self.name}",
            usage=f"{PROGRAM} {self.usage} [options]",
            description="\n".join([text, "", *words]),
            formatter_class=_formatter(),
            exit_on_error=False,
            default_env=False,
        )
        skip: set[Any] = {*self.words, *filter(None, [self.rest])}
        parser.add_function_arguments(self.function, skip=skip)
        return parser

    def _split(self, arguments: Sequence[str], parser: Any) -> tuple[list[str], list[str]]:
        """Words, and options in the form --name=value."""
        flags = {f"--{a.dest}" for a in parser._actions if getattr(a, "_typehint", None) is bool}
        known = [option for action in parser._actions for option in action.option_strings]
        words: list[str] = []
        typed: list[str] = []
        items = list(arguments)
        while items:
            item = items.pop(0)
            name, equals, _ = item.partition("=")
            if not item.startswith("--"):
                words.append(item)
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UserError(f"unknown option {name}" + (f" (did you mean {near[0]}?)" if near else ""))
            if equals:
                typed.append(item)
            elif name in flags:
                value = items.pop(0) if items and items[0].lower() in ("true", "false") else "true"
                typed.append(f"{name}={value}")
            elif items:
                typed.append(f"{name}={items.pop(0)}")
            else:
                raise UserError(f"{name} needs a value")
        return words, typed


def _formatter() -> Any:
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Types and defaults as jsonargparse shows them, the description's lines as they were written."""

    return Formatter
