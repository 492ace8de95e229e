"""YAML of strangers: plain values, of a size that the file itself has."""

from __future__ import annotations

from typing import Any

import yaml

from mixer_finetune.errors import UserError

MOST_VALUES = 100_000  # of a file, those that an alias repeats counted each time
MOST_LEVELS = 50
MOST_CHARACTERS = 2**20


def read_plain(text: str, name: str) -> Any:
    """The content of a YAML file.

    An alias (`*a`) repeats what its anchor (`&a`) marks, and a few lines of them make gigabytes: values are counted
    before any is made.

    Args:
        text: Of the file.
        name: What to call it in an error.

    Raises:
        UserError: It does not parse, is nested too deeply, contains itself or is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{name} is too large: {len(text):,} characters, of which a configuration has few")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}, ()) > MOST_VALUES:
            raise UserError(f"{name} is too large: it holds more than {MOST_VALUES:,} values, its aliases written out")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{name} is not valid YAML: it is nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Values in a node, with those that aliases repeat."""
    if id(node) in above:
        raise yaml.YAMLError("a value contains itself")
    if len(above) > MOST_LEVELS:
        raise yaml.YAMLError("it is nested too deeply")
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_count(part, known, (*above, id(node))) for part in parts)
    return known[id(node)]
