"""How the package is built: imports run one way, and no folder is a house of its own."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "mixer_finetune"
# From the bottom up; "" are the single files.
LAYERS = ("", "hub", "backbones", "augment", "data", "training", "evaluation", "sharing", "engine", "cli")


def layer(parts):
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else 0


def imported(tree):
    """Modules of the package that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mixer_finetune."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("mixer_finetune."))


def test_imports_run_downwards():
    files = [file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or not file.name.startswith("__")]
    up = [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for file in files
        for module in imported(ast.parse(file.read_text(encoding="utf-8")))
        if layer(module.split(".")) > layer(("", *file.relative_to(PACKAGE).parts[:-1]))
    ]
    assert len(files) > 100 and up == []


def test_no_folder_holds_more_than_a_fifth_of_the_lines():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    folders = {file.relative_to(PACKAGE).parts[0] for file in lines if file.parent != PACKAGE}
    sizes = {name: sum(n for file, n in lines.items() if file.is_relative_to(PACKAGE / name)) for name in folders}
    assert max(sizes.values()) < sum(lines.values()) / 5, sizes
