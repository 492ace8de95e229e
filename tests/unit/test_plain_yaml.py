"""Configurations of strangers: plain values, of the size that the file has."""

import time

import pytest
import yaml

from mixer_finetune.engine.arguments import read_yaml
from mixer_finetune.engine.recipes import all_recipes
from mixer_finetune.errors import UserError
from mixer_finetune.plain_yaml import read_plain
from mixer_finetune.runs import RunFolder

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "holds more than 100,000 values, its aliases written out"),
        ("a: &a [*a]", "a value contains itself"),
        ("a: &a {b: *a}", "a value contains itself"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ("a: " + "x" * 2**21, "2,097,155 characters"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("? [a]\n: b", "unhashable key"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!float _", "not valid YAML"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_a_configuration_that_is_no_plain_one_is_refused_in_one_line(text, problem, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    started = time.monotonic()
    for read in (lambda: read_yaml(file), RunFolder(tmp_path).read_config):
        with pytest.raises(UserError, match=problem) as error:
            read()
        assert str(error.value).startswith(f"{file} ") and "\n" not in str(error.value) and len(str(error.value)) < 500
    assert time.monotonic() - started < 20


def test_plain_configurations_read_as_ever():
    for path in all_recipes().values():
        text = path.read_text(encoding="utf-8")
        assert read_plain(text, "it") == yaml.safe_load(text)
    shared = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]"
    assert read_plain(shared, "it") == yaml.safe_load(shared) and read_plain("", "it") is None
