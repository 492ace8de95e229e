"""What is said while something long goes on."""

import logging
import sys

import pytest

from mixer_finetune.hub import progress
from mixer_finetune.hub.progress import Pace, client_bar, paced, say_download, size_text


@pytest.fixture
def said(caplog, monkeypatch):
    """Lines of the log, without the wait between them."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "mixer_finetune")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1 bytes"), (999, "999 bytes"), (1_500, "1.5 kB"), (240_000_000, "240 MB"), (3e9, "3 GB")]
)
def test_sizes_are_for_a_person(size, text):
    assert size_text(size) == text


def test_small_files_are_not_worth_a_line(said):
    say_download("config.json of a/b", 500)
    say_download("model.safetensors of a/b", 239_500_000)
    say_download("https://here/there", None)
    assert said() == ["downloading model.safetensors of a/b (240 MB)", "downloading https://here/there"]


def test_a_line_says_how_much_of_what(said):
    Pace("downloading x", 4e6).at(1e6)
    Pace("downloading x", None).at(1e6)
    assert list(paced("ab", 2, "files of a/b")) == ["a", "b"]
    assert said() == ["downloading x: 1 MB of 4 MB (25%)", "downloading x: 1 MB"] + [
        "files of a/b: 1 of 2 (50%)",
        "files of a/b: 2 of 2 (100%)",
    ]


def test_lines_come_at_their_distance_only(caplog):
    caplog.set_level(logging.INFO, "mixer_finetune")
    pace = Pace("downloading x", 10)
    for done in range(10):
        pace.at(done)
    assert not caplog.records


def test_the_client_writes_lines_where_no_terminal_shows_its_bar(said, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    bar = client_bar()
    assert bar is not None
    with bar(total=1000, initial=100, desc="model.safetensors", unit="B") as shown:
        shown.update(400)
    assert said() == ["downloading model.safetensors: 500 bytes of 1 kB (50%)"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert client_bar() is None
