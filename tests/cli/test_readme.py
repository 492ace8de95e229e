"""What README and docs show works as it stands there."""

import re
import shlex
import subprocess
import sys

import pytest

from conftest import ROOT
from mixer_finetune.cli.main import main

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = {
    line.partition(" #")[0].strip(): None
    for text in TEXTS.values()
    for block in re.findall(r"```(?:sh|console)?\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
    if re.match(r"(python -m mixer_finetune|mixer-finetune) ", line)
}
# A block is left out where a comment directly above it says why: <!-- not run: ... -->
EXAMPLES = [
    (name, block)
    for name, text in TEXTS.items()
    for reason, block in re.findall(r"(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)```", text, re.DOTALL)
    if not reason
]


def run_python(code, environment, folder):
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readmes_example_learns(environment, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    printed = run_python(example, environment, tmp_path)
    assert float(re.search(r"test/accuracy\D+([0-9.]+)", printed)[1]) > 0.8


@pytest.mark.parametrize("page", sorted({name for name, _ in EXAMPLES} - {"README.md"}))
def test_the_examples_of_a_page_run(page, environment, tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")  # whose picture they use
    run_python("\n".join(block for name, block in EXAMPLES if name == page), environment, tmp_path)


def test_the_two_first_commands_are_there():
    assert "\npip install . && python -m mixer_finetune fit --recipe digits\n" in TEXTS["README.md"]
    assert re.search(r'^pip install ".\[test\]" && python -m pytest', TEXTS["README.md"], re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if " fit " in c])
def test_each_fit_command_has_options_that_exist(command, tmp_path, monkeypatch):
    if "--resume" in command or "RUN" in command or "my.Classifier" in command or ".help" in command:
        pytest.skip("it needs a run or a file, or only shows help")
    monkeypatch.chdir(tmp_path)
    main(["recipes", "copy", "cifar100", "mine.yaml"])
    arguments = shlex.split(command.split("mixer_finetune ")[-1].removeprefix("mixer-finetune "))
    assert main([*arguments, "--print_config"]) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if " fit " not in c])
def test_the_options_of_each_other_command_are_in_its_help(command, capsys):
    name, *rest = shlex.split(command.removeprefix("mixer-finetune "))
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for option in (part for part in rest if part.startswith("--")):
        assert re.search(rf"{option}\b", text), option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_lines_are_short(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
    for line in text.splitlines():
        assert len(line) <= 120 or line.startswith("|"), line
