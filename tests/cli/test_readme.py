"""What README and docs show works as it stands there."""

import re
import shlex

import pytest

import forked
import scripts
from conftest import ROOT
from mixer_finetune.cli.main import main

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
# Each block, with its page, the comment above it, its language and its text. A block is left out where a comment
# directly above it says why: <!-- not run: ... -->
BLOCKS = [
    (name, *found)
    for name, text in TEXTS.items()
    for found in re.findall(r"(<!-- not run: [^\n]+ -->\n)?^```([^\n`]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]
COMMANDS = {
    line.partition(" #")[0].strip(): None
    for _, reason, language, block in BLOCKS
    for line in block.splitlines()
    if not reason and not language and re.match(r"(python -m mixer_finetune|mixer-finetune) ", line)
}
EXAMPLES = [(name, block) for name, reason, language, block in BLOCKS if language == "python" and not reason]
# Languages whose blocks are run by another test (test_extending, recipes' own, test_examples), and on which pages.
ELSEWHERE = {"diff": ("extending.md",), "yaml": ("recipes.md",), "{.python}": ("lightning.md", "serving.md")}


def run_python(code, environment, folder):
    result = forked.start(scripts.code, (code,), environment, folder).finished(600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_each_block_is_run_or_says_why_not():
    assert len(BLOCKS) > 80
    for name, reason, language, block in BLOCKS:
        lines = [line for line in block.splitlines() if line.strip()]
        if reason or language == "python" or name in ELSEWHERE.get(language, ()):
            continue
        assert language == "", f"{name}: {block}"
        commands = [line.partition(" #")[0].strip() for line in lines]
        first_two = name == "README.md" and all(line.startswith("pip install ") for line in commands)  # of .ci/run
        assert first_two or all(line in COMMANDS for line in commands), f"{name}: {block}"


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
