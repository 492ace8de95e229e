"""Scripts and code of the docs, run by a fork that has imported torch already (see forked.py)."""

import runpy
import sys


def script(path: str, *arguments: str) -> int:
    """As `python PATH ARGUMENTS`."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
    return 0


def code(text: str) -> int:
    """As `python -c TEXT`."""
    exec(compile(text, "<example>", "exec"), {"__name__": "__main__"})
    return 0
