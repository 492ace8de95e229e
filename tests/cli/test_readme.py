"""What the README shows works as it stands there."""

import re
import shlex
import subprocess
import sys

import pytest

from conftest import ROOT
from mixer_finetune.cli.main import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```(?:sh|console)?\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if re.match(r"(python -m mixer_finetune|mixer-finetune) ", line)
]


def test_the_python_example_runs(environment, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    accuracy = float(re.search(r"test/accuracy\D+([0-9.]+)", result.stdout)[1])
    assert accuracy > 0.8


def test_the_two_first_commands_are_there():
    assert "\npip install . && python -m mixer_finetune fit --recipe digits\n" in README
    assert re.search(r'^pip install ".\[test\]" && python -m pytest', README, re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if " fit " in c])
def test_each_fit_command_has_options_that_exist(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["recipes", "copy", "cifar100", "mine.yaml"])
    arguments = shlex.split(command.split("mixer_finetune ")[-1].removeprefix("mixer-finetune "))
    if "--resume" not in arguments and "RUN" not in command:
        assert main([*arguments, "--print_config"]) == 0
