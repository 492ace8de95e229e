"""What .github/release.py takes for a release."""

import importlib.util

import pytest

import mixer_finetune
from conftest import ROOT

spec = importlib.util.spec_from_file_location("release", ROOT / ".github" / "release.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "mixer_finetune").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    (tmp_path / "mixer_finetune" / "__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 0.2.0\n")

    def write(text):
        (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n{text}")
        return tmp_path

    return write


def test_the_newest_section_is_the_release(checkout):
    root = checkout("## [0.2.0] - 2026-12-01\n\n### Added\n\n- A.\n\n## [0.1.0] - 2026-11-01\n\n- B.\n")
    assert module.release(root) == ("0.2.0", "### Added\n\n- A.")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- C.\n\n## [0.2.0] - 2026-12-01\n", "changes under"),
        ("## 0.2\n", "no [VERSION] - DATE, but '0.2'"),
        ("", "no [VERSION] - DATE"),
        ("## [0.3.0] - 2026-12-01\n", "CHANGELOG.md has 0.3.0, pyproject.toml has 0.2.0"),
    ],
)
def test_what_is_no_release_is_said(checkout, text, says):
    with pytest.raises(SystemExit, match=says.replace("[", r"\[")):
        module.release(checkout(text))


def test_the_versions_of_this_checkout_agree():
    for name, pattern in module.ELSEWHERE.items():
        found = module.re.search(pattern, (ROOT / name).read_text(), module.re.MULTILINE)
        assert found and found[1] == mixer_finetune.__version__, name
