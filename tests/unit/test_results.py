"""results.json, and the report and card that are made of it, from a run folder that is made by hand."""

import dataclasses
import html
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from mixer_finetune import ImageDataModule, UserError, load_backbone, save_model_folder
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.data.sources import Split
from mixer_finetune.evaluation.explain import affordable
from mixer_finetune.evaluation.figures import write_pictures
from mixer_finetune.evaluation.kinds import KINDS
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.report import write_report
from mixer_finetune.evaluation.report_weights import starting_weights, token_weight_names
from mixer_finetune.evaluation.results import Results, device_name, options_of, versions
from mixer_finetune.evaluation.splits import open_data
from mixer_finetune.runs import RunFolder
from mixer_finetune.sharing.card import model_card, partial_note
from mixer_finetune.texts import markdown, markdown_code

NASTY = [
    "a|b `code`",
    "<script>alert(1)</script>",
    "two\nlines",
    "![x](http://evil.example/x.png)",
    "$x^{$",
    "*bold* _em_ ~~gone~~ www.evil.example",
    'quote" onmouseover="alert(1)',
    "</pre><b>&amp;\\",
]
OTHERS = [f"class {i}" for i in range(60)]
CONFIG = {
    "seed_everything": 0,
    "model": {"backbone": "mixer_nano", "freeze_backbone": False, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0},
    "data": {"source": "digits", "batch_size": 64, "crop_area": [0.5, 1.0], "flip": True},
}


class Records:
    """Images in the place of a `datasets.Dataset`."""

    def __init__(self, count):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
        self.record, self.count = {"bytes": buffer.getvalue(), "path": None}, count

    def __getitem__(self, rows):
        return {"image": [self.record for _ in rows]}


def results_of(names, **changes):
    """Results of a run as it ends today."""
    return dataclasses.replace(
        Results(
            metrics={"accuracy": 0.5, "macro_f1": 0.4, "loss": 1.25},
            split="test",
            role="test",
            samples=2 * len(names),
            split_samples=2 * len(names),
            train_samples=100,
            bad_images=[],
            classes=names,
            dev={"accuracy": 0.625, "loss": 1.5},
            backbone={"source": "mixer_nano", "weights": "pretrained", "revision": None, "license": "apache-2.0"},
            preprocessing={},
            data={"source": "digits", "revision": None, "license": None},
            parameters=1000,
            trained_parameters=1000,
            device="a CPU",
            devices=1,
            precision="32-true",
            versions=versions(),
            seconds=12.0,
            steps=34,
            ended_by="schedule",
            time={
                "fit": 12.0,
                "waiting_for_data": 1.0,
                "validation": 1.0,
                "checkpoints": 0.5,
                "images_per_second": 99.0,
            },
        ),
        **changes,
    )


def made_run(folder, names, **changes):
    """A finished run on classes of those names, and its split: each second image is taken for the next class."""
    run, n, classes = RunFolder(folder), 2 * len(names), len(names)
    folder.mkdir()
    labels = np.arange(n) // 2
    first = (labels + np.arange(n) % 2) % classes
    split = Split("test", Records(n), "image", labels, np.arange(n))
    top = np.stack([first, (first + 1) % classes], 1)
    files = [split.image_name(i) for i in range(n)]
    predictions = Predictions(names, files, np.arange(n), labels, top, np.tile([0.6, 0.3], (n, 1)))
    predictions.write(run.predictions_file)
    results = results_of(names, **changes).with_intervals(*KINDS["single_label"].measured(predictions))
    results.write(run)
    run.config_file.write_text(yaml.safe_dump(CONFIG))
    run.metrics_file.write_text("step,train/loss,train/lr,val/loss,val/accuracy\n34,1.0,0.1,1.5,0.625\n")
    backbone = load_backbone("mixer_nano", num_classes=classes)
    backbone.label_names = names
    save_model_folder(run.model, backbone, names)
    return run, split, predictions, results


class Page(HTMLParser):
    """What a page loads and shows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.places, self.shown, self.handlers = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.places += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.shown += data


# results.json


def test_results_are_read_as_they_were_written(tmp_path):
    run = RunFolder(tmp_path)
    results = results_of(["a", "b"], intervals={"accuracy": (0.1, 0.9)}, calibration_error=0.25, ended_by="max_time")
    results.write(run)
    assert Results.read(run) == results
    assert list(json.loads(run.results_file.read_text()))[:4] == ["metrics", "split", "role", "samples"]


def test_results_of_earlier_versions_are_read(tmp_path):
    run = RunFolder(tmp_path)
    content = dataclasses.asdict(results_of(["a", "b"]))
    for new in ("split_samples", "task", "monitor", "dev", "ended_by"):
        del content[new]
    run.results_file.write_text(json.dumps({**content, "something": "new"}))
    found = Results.read(run)
    assert (found.split_samples, found.task, found.monitor, found.dev) == (4, "single_label", "accuracy", None)
    assert found.ended_by is None and not found.partial


def test_a_run_that_did_not_finish_and_a_damaged_file_are_named(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError) as error:
        Results.read(run)
    line = error.value.spelled(lambda option: f"fit --{option}")
    assert "did not finish" in line and f"go on with fit --resume {tmp_path}" in line
    run.results_file.write_text('{"metrics": {}}')
    with pytest.raises(UserError, match="can't be read: .*missing"):
        Results.read(run)


def test_options_are_found_beside_a_class_of_the_users_own():
    assert options_of(CONFIG, "data")["source"] == "digits"
    config = {
        "model": {"class_path": "mine.Model", "init_args": {"backbone": "mixer_nano"}},
        "data": {"class_path": "x.Y"},
    }
    assert options_of(config, "model") == {"backbone": "mixer_nano"} and options_of(config, "data") == {}
    with pytest.raises(UserError, match=r"x\.Y, which is not loaded"):
        open_data(config)
    with pytest.raises(UserError, match="names no data"):
        open_data({"data": {}})


def test_the_data_is_opened_as_the_run_had_it():
    options = {"source": "digits", "val_fraction": 0.2}
    opened = open_data(
        {"seed_everything": 3, "data": {"class_path": "mixer_finetune.ImageDataModule", "init_args": options}}
    )
    expected = ImageDataModule(**options, seed=3)
    assert np.array_equal(opened.splits["val"].rows, expected.splits["val"].rows)


def test_versions_and_device_are_named():
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    assert "thread" in device_name(trainer) and versions()["torch"] == torch.__version__.partition("+")[0]


# Names as text


@pytest.mark.parametrize("names", [NASTY, NASTY + OTHERS], ids=["a table", "a picture"])
def test_names_are_text_in_the_report(tmp_path, names):
    run, split, predictions, results = made_run(tmp_path / "run", names)
    text = write_report(run, split=split).read_text()
    page = Page(text)
    assert page.tags.count("script") == (2 if len(names) > 25 else 1) and not page.handlers
    assert all(place.startswith(("data:image/", "#")) for place in page.places) and "evil.example" in page.shown
    for name in NASTY:
        assert name in page.shown, name
    if len(names) > 25:
        assert json.loads(re.search(r'id="confusion">(.*?)</script>', text)[1])["names"] == names


@pytest.mark.parametrize("names", [NASTY, NASTY + OTHERS], ids=["all classes", "the worst"])
def test_names_are_text_in_the_card(tmp_path, names):
    run, *_ = made_run(
        tmp_path / "run", names, data={"source": "/home/me/a|b `c` <i>", "revision": None, "license": "x|<y>"}
    )
    card = model_card(run)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    metadata = yaml.safe_load(front)
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == "a|b `c` <i>"
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body)
    page = Page(rendered)
    assert not {"script", "b", "strong", "em", "s", "i"} & set(page.tags) and not page.handlers
    assert set(page.places) == {"confusion_matrix.png", "learning_curves.png"}
    flat = " ".join(page.shown.split())
    for name in NASTY:
        assert flat.count(" ".join(name.split())) >= 2, name  # in the list and in the table
    rows = re.findall(r"<tr>\s*(.*?)\s*</tr>", rendered, re.DOTALL)
    assert {row.count("<td") for row in rows[1:]} <= {0, 2, 3, 5}


def test_markdown_shows_texts_as_they_are():
    markdown_it = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for text in [*NASTY, "snake_case", "_x_", "# not a heading", "a#b #", "http://x.org", "a@b.org", "&lt;", "`` ` ``"]:
        flat = " ".join(text.split())
        rendered = markdown_it.render(f"a {markdown(text)}").strip()
        assert rendered == f"<p>a {html.escape(flat).replace('&#x27;', chr(39))}</p>", text
        code = Page(markdown_it.render(f"a {markdown_code(text)}"))
        assert "code" in code.tags and flat in " ".join(code.shown.split())
    assert (
        markdown("snake_case: 5") == "snake_case: 5"
        and r"www\.x" in markdown("www.x")
        and r":\//" not in markdown("a://")
    )


# Parts of a split, classes without images, early ends


def test_results_of_a_part_of_the_split_say_so(tmp_path):
    run, split, predictions, results = made_run(tmp_path / "run", ["a", "b", "c"], split_samples=10_000)
    assert results.partial and partial_note(results) == "measured on 6 of 10,000 images of the split"
    page = Page(write_report(run, split=split).read_text())
    assert "Measured on 6 of 10,000 images of the split" in page.shown
    card = model_card(run)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["dataset"]["name"] == "digits (6 of 10,000 images)"
    results_part, limitations = body.split("## Limitations")
    assert "On 6 of 10,000 images of split `test`:" in results_part
    assert "- Measured on 6 of 10,000 images of the split." in limitations


def test_results_of_the_whole_split_say_nothing_of_parts(tmp_path):
    run, split, predictions, results = made_run(tmp_path / "run", ["a", "b", "c"])
    assert not results.partial and partial_note(results) is None
    assert "Measured on 6" not in write_report(run, split=split).read_text()
    card = model_card(run)
    assert "On the 6 images of split `test`:" in card and "Measured on 6" not in card and "name: digits\n" in card


def test_classes_without_images_are_counted_and_not_listed_as_never_found(tmp_path):
    names = ["a", "b", "c", "absent", "taken for it"]
    run, split, predictions, results = made_run(tmp_path / "run", names)
    kept = predictions.labels < 3
    top = np.where(predictions.top == 3, 4, predictions.top)
    dataclasses.replace(
        predictions,
        files=predictions.files[: kept.sum()],
        **{name: getattr(predictions, name)[kept] for name in ("indices", "labels", "probabilities")},
        top=top[kept],
    ).write(run.predictions_file)
    text = write_report(run, split=split).read_text()
    assert "2 of 5 classes have no image in the split and are left out" in text
    matrix, classes = (text.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0] for title in PARTS)
    for part in (matrix, classes):
        assert sorted(re.findall(r'<th scope="row">(.*?)</th>', part)) == ["a", "b", "c"]
    assert re.findall(r'<th scope="col"><span>(.*?)</span>', text) == ["a", "b", "c", "taken for it"]
    card = model_card(run)
    assert "2 of 5 classes have no image in the split and are left out." in card
    assert "| a | 2 | 50.0% |" in card and "| absent |" not in card and "absent (0%" not in card
    assert re.search(r"Lowest recall: a \(50% of 2\), b \(50% of 2\), c \(50% of 2\)\.", card)


PARTS = ("Confusion matrix", "Classes")


def test_recall_and_precision_stand_under_their_names(tmp_path):
    names = ["cat", "dog"]
    run, split, predictions, _ = made_run(tmp_path / "run", names)
    # Both cats are called so, and a dog is, too: recall of cat 100%, precision 2 of 3.
    top = np.array([[0, 1], [0, 1], [0, 1], [1, 0]])
    dataclasses.replace(predictions, top=top).write(run.predictions_file)
    card = model_card(run)
    assert "| class | images | recall | precision | F1 |" in card
    assert "| cat | 2 | 100.0% | 66.7% | 80.0% |" in card and "| dog | 2 | 50.0% | 100.0% | 66.7% |" in card
    assert "Lowest recall: dog (50% of 2)." in card
    text = write_report(run, split=split).read_text()
    classes = text.partition("<h2>Classes</h2>")[2].partition("</section>")[0]
    assert re.findall(r"<button.*?>(.*?)</button>", classes) == ["class", "images", "recall", "precision", "F1"]
    rows = re.findall(r"<tr><th scope=.row.>(.*?)</th>(.*?)</tr>", classes)
    cells = {name: re.findall(r">([^<>]+)<", row) for name, row in rows}
    assert list(cells) == ["dog", "cat"]  # the lowest recall first
    assert cells["dog"] == ["2", "50.0%", "9% to 91%", "100.0%", "66.7%"]
    assert cells["cat"] == ["2", "100.0%", "34% to 100%", "66.7%", "80.0%"]
    assert "The answer is right for 3 of 4 images of split test: 75.0% (95% interval 30.1% to 95.4%). Always to say " \
        "cat would be right for 50.0%. Hardest is dog, right for 50% of 2." in text  # fmt: skip


def test_how_training_ended_and_the_dev_split_are_told(tmp_path):
    run, split, *_ = made_run(tmp_path / "run", ["a", "b"], ended_by="EarlyStopping")
    page = Page(write_report(run, split=split).read_text())
    assert "ended by EarlyStopping" in page.shown
    assert "On the dev split at the end of training: top-1 accuracy 62.50%, loss 1.5." in page.shown
    assert "1.25" in page.shown and "Learning rate" in page.shown
    card = model_card(run)
    assert "| steps | 34, ended by EarlyStopping |" in card and "| loss | 1.25 |  |" in card
    assert "type: f1" in card and "name: loss" not in card


def test_optimizers_and_augmentation_are_told_in_words(tmp_path):
    run, *_ = made_run(tmp_path / "run", ["a", "b"])
    assert "| optimizer | sgd, learning rate 0.1, weight decay 0.0, 0 warm-up steps, then cosine |" in model_card(run)
    model = {
        "class_path": "mine.Classifier",
        "init_args": {
            "backbone": "mixer_nano",
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}},
        },
    }
    run.config_file.write_text(yaml.safe_dump({**CONFIG, "model": model, "data": {"class_path": "mine.Data"}}))
    card = model_card(run)
    assert "| optimizer | Adam (lr 0.001); StepLR (step_size 2) |" in card
    assert "| augmentation |" not in card and "| batch |" not in card


# The report's pictures


@pytest.mark.slow
def test_a_report_made_again_is_the_same_and_tells_what_takes_time(tmp_path):
    run, split, *_ = made_run(tmp_path / "run", ["a", "b", "c"])
    said = []
    first = write_report(run, split=split, say=said.append).read_bytes()
    assert said == ["explaining 3 mistakes (integrated gradients, 24 steps)", "drawing the weights"]
    again = write_report(run, tmp_path / "again.html", split=split, backbone=load_backbone(run.model))
    assert again.read_bytes() == first
    write_report(run, tmp_path / "again.html", split=split, method="occlusion", say=said.append)
    assert said[2] == "explaining 3 mistakes (occlusion, squares of 4 x 4 px)"
    with pytest.raises(UserError, match="unknown method 'magic'; use explain integrated_gradients or occlusion"):
        write_report(run, split=split, method="magic")


def test_a_report_without_its_data_or_its_start_says_so(tmp_path):
    run, split, *_ = made_run(tmp_path / "run", ["a", "b", "c"])
    gone = {**CONFIG, "data": {"source": "/gone"}, "model": {"backbone": "/gone"}}
    run.config_file.write_text(yaml.safe_dump(gone))
    page = Page(write_report(run).read_text())
    assert "The images can't be shown: " in page.shown and "What they were before can't be shown: " in page.shown


def test_images_that_are_not_the_evaluated_ones_are_not_shown(tmp_path):
    run, split, *_ = made_run(tmp_path / "run", ["a", "b", "c"])
    other = dataclasses.replace(split, name="other")
    page = Page(write_report(run, split=other).read_text())
    assert "3 more can't be shown: the data no longer holds the images" in page.shown and "card" not in page.tags


def on_meta(architecture):
    with torch.device("meta"):
        return Backbone(architecture)


def test_large_backbones_get_fewer_steps_and_fewer_images():
    efforts = [affordable(on_meta(name), 12) for name in ("mixer_nano_32", "mixer_s32_224", "mixer_b16_224")]
    assert efforts[0] == (12, 24) and efforts[1].images == 12 and 8 <= efforts[1].steps < 24
    assert efforts[2].steps == 8 and 2 <= efforts[2].images < 8
    assert affordable(on_meta("mixer_l16_224"), 1) == (1, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "mixer_nano"},
        {"backbone": "mixer_nano", "image_size": 48},
        {"backbone": "mixer_nano", "image_size": [64, 32], "resize": "block_diagonal", "in_chans": 1},
        {"backbone": "mixer_nano_32", "image_size": 24},
        {"backbone": "gmlp_ti16_224"},
        {"backbone": "resmlp_12_224", "image_size": 64},
        {"backbone": "gmixer_12_224", "image_size": 64},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_weights_before_are_those_that_the_run_started_from(options):
    shape = {name: value for name, value in options.items() if name != "backbone"}
    whole = load_backbone(options["backbone"], **shape, seed=5)
    names = [*token_weight_names(whole), "stem.proj.weight"]
    assert len(names) == 4
    found = starting_weights({"seed_everything": 5, "model": options}, whole, names)
    for name in names:
        assert torch.equal(found[name], whole.state_dict()[name]), name
    with pytest.raises(UserError, match="is now another one"):
        starting_weights({"model": {**options, "image_size": 224 + 16 * 4}}, whole, names)


def test_the_pictures_show_accuracy_and_what_it_is_of(tmp_path):
    run, split, predictions, results = made_run(tmp_path / "run", NASTY, split_samples=100)
    write_pictures(run, predictions, results)
    for path in (run.curves_picture, run.confusion_picture):
        assert Image.open(path).format == "PNG"
    run.confusion_picture.unlink()
    write_pictures(run, None, results)
    assert not run.confusion_picture.exists()
