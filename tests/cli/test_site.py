"""The site of the docs builds without a warning, and names all that is public."""

import importlib.util
import inspect
import re
import subprocess
import sys

import pytest
import yaml

import mixer_finetune
from conftest import ROOT
from mixer_finetune.cli.main import COMMANDS

DOCS = ROOT / "docs"


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason='needs pip install ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in mixer_finetune.__all__:
        assert f'id="mixer_finetune.{name}"' in api, name


def test_each_public_name_and_method_is_documented():
    for name in mixer_finetune.__all__:
        public = getattr(mixer_finetune, name)
        assert inspect.getdoc(public), name
        for member, value in vars(public).items() if inspect.isclass(public) else ():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_each_command_and_each_page_is_in_the_navigation():
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for command in COMMANDS:
        assert re.search(rf"(mixer-finetune |`){command} ", text), command
    named = set(re.findall(r"^ +- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {page.name for page in DOCS.glob("*.md")}


def test_the_page_of_recipes_is_that_of_their_headers():
    spec = importlib.util.spec_from_file_location("make_recipes", DOCS / "make_recipes.py")
    make_recipes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_recipes)
    assert (DOCS / "recipes.md").read_text(encoding="utf-8") == make_recipes.page(), "run python docs/make_recipes.py"
    assert yaml.safe_load(re.findall(r"```yaml\n(.*?)```", make_recipes.page(), re.DOTALL)[0])


def test_each_message_of_the_troubleshooting_page_is_one_of_the_programs():
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "mixer_finetune").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go on in the next line
    source = re.sub(r"\{[^{}]*\}", "...", source)
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [part for line in re.findall(r"^### .*", page, re.MULTILINE) for part in re.findall(r"`([^`]+)`", line)]
    assert len(messages) > 20
    for message in messages:
        for part in message.split("...") if "CUDA" not in message else ():
            assert part.strip(" ():;,'") in source, message
