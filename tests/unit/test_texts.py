"""Names that strangers chose are text in every medium: Markdown, figures, CSV, the terminal, YAML."""

import csv
import io
import logging

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from huggingface_hub import ModelCardData
from markdown_it import MarkdownIt

from mixer_finetune.cli.main import main
from mixer_finetune.console import LogHandler
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.figure_text import figure_text
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.page import text
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.rows import finish_rows, row_schema
from mixer_finetune.texts import csv_cell, from_csv_cell, markdown, markdown_code, terminal, terminal_line

NAMES = [
    "cost $\\frac{a}{$", "car\rriage", "new\nline", "`tick`", "``two``", "![x](http://evil.example/p.png)",
    "<script>alert(1)</script>", "\x1b[31mred\x1b]0;title\x07", "=1+1", "+SUM(A1)", "-cmd|' /C calc'!A0", "@x", "-2",
    "--- \nlicense: evil\n---", "'quoted", "''", 'a,b"c', "\u202egnp.exe", "- item", "[bold]rich[/bold]", "\x9b31m",
    "name: {a: *b}", "\tindented", ":smile:", "\u2028separated", "m\udcfcller", "#", "&lt;", "", " ",
]  # fmt: skip


def test_in_markdown_a_name_is_text_without_controls():
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for name in NAMES:
        for rendered in (page.render(f"a {markdown(name)} b"), page.render(f"a {markdown_code(name)} b")):
            assert not [tag for tag in ("<img", "<script", "<a ", "<h") if tag in rendered]
            assert not set(rendered) & set("\x1b\x07\x9b\r\u202e\u2028\udcfc"), name
        cell = page.render(f"| a | b |\n|-|-|\n| {markdown(name)} | 1 |\n")
        assert cell.count("<td>") == 2, name


def test_in_figures_a_name_is_no_formula_and_has_one_line():
    for name in NAMES:
        shown = figure_text(name)
        assert shown.count("$") == shown.count("\\$") and not set(shown) & set("\x1b\r\n\u202e")


def test_in_html_a_name_is_no_tag():
    assert not any("<" in text(name) for name in NAMES)


def test_in_csv_no_name_is_a_formula_and_each_comes_back(tmp_path):
    for name in NAMES:
        cell = csv_cell(name)
        assert from_csv_cell(cell) == name
        assert len(cell) < 2 or cell[0] not in "=+-@\t\r\n" or cell == "-2"
    n, order = len(NAMES), np.arange(len(NAMES))
    made = Predictions(NAMES, NAMES, order, order, order[:, None], np.full((n, 1), 0.5))
    made.write(tmp_path / "predictions.csv")
    read = Predictions.read(tmp_path / "predictions.csv", NAMES)
    assert read.files == NAMES and read.labels.tolist() == read.top[:, 0].tolist() == order.tolist()
    sets = LabelSets(NAMES, NAMES, order, np.eye(n, dtype=bool), np.eye(n))
    sets.write(tmp_path / "labels.csv")
    assert LabelSets.read(tmp_path / "labels.csv", NAMES).files == NAMES
    for file in ("predictions.csv", "labels.csv"):
        with open(tmp_path / file, newline="", errors="surrogateescape") as lines:
            cells = [cell for row in csv.reader(lines) for cell in row]
        assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n") and cell not in ("-2", "")]


def test_predictions_of_an_earlier_version_have_names_as_they_are(tmp_path):
    (tmp_path / "predictions.csv").write_text("index,file,label,label_1,probability_1\n0,a.png,=1+1,'quoted,0.5\n")
    found = Predictions.read(tmp_path / "predictions.csv", ["=1+1", "'quoted"])
    assert found.labels.tolist() == [0] and found.top.tolist() == [[1]]


def test_predict_writes_no_formula_into_csv_and_names_as_they_are_elsewhere(tmp_path):
    schema = row_schema(1, features=False, several=True, computed_by="it")
    names = [name for name in NAMES if "\udcfc" not in name]
    rows = [{"file": name, "labels": [name], "label_1": name, "probability_1": 0.5} for name in names]
    for suffix in (".csv", ".jsonl", ".parquet"):
        part, target = tmp_path / "part", tmp_path / f"out{suffix}"
        with pa.ipc.new_stream(str(part), schema) as stream:
            stream.write_batch(pa.RecordBatch.from_pylist(rows, schema))
        finish_rows(part, target)
    with open(tmp_path / "out.csv", newline="") as file:
        found = [row["label_1"] for row in csv.DictReader(file)]
    assert [from_csv_cell(cell) for cell in found] == names and found[names.index("=1+1")] == "'=1+1"
    assert pa.parquet.read_table(tmp_path / "out.parquet")["label_1"].to_pylist() == names


def test_a_terminal_gets_no_escapes_and_one_line(monkeypatch, capsys):
    for name in NAMES:
        assert not set(terminal(name)) & set("\x1b\x07\x9b\r\u202e\u2028\udcfc")
        assert "\n" not in terminal_line(name)
    assert terminal("a\x1b[1m") == r"a\x1b[1m" and terminal("m\udcfcller") == r"m\udcfcller"
    assert terminal("naïve 猫 👨\u200d👩 a\u00a0b") == "naïve 猫 👨\u200d👩 a\u00a0b"
    assert len(terminal_line("x" * 10**6)) < 4100

    logger = logging.getLogger("mixer_finetune")
    handler = LogHandler()
    for level in (logging.INFO, logging.WARNING):
        handler.emit(logger.makeRecord("x", level, "", 0, "class %s", ("\x1b[2J[bold]a[/bold]\nerror: :smile:",), None))

    def fails(*_):
        raise UserError("bad \x1b[31m\nname")

    monkeypatch.setattr("mixer_finetune.cli.main._run", fails)
    assert main(["recipes"]) == 2
    printed = capsys.readouterr()
    assert printed.err == ("warning: class \\x1b[2J[bold]a[/bold]\\nerror: :smile:\nerror: bad \\x1b[31m\\nname\n")


@pytest.mark.parametrize("name", [name for name in NAMES if "\udcfc" not in name])
def test_in_the_cards_front_matter_a_name_is_one_value(name):
    front = ModelCardData(license=name, model_name=name, datasets=[name], tags=["timm"]).to_yaml()
    assert yaml.safe_load(io.StringIO(front))["license"] == name
    assert "\n---" not in front and list(yaml.safe_load(front)) == list(yaml.safe_load(front.strip()))
