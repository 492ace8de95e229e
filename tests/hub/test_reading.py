"""Models and data sets of the Hub, read by the real commands and clients."""

import io
import json

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

DIGITS = [str(digit) for digit in range(10)]
TINY = (
    "--trainer.accelerator", "cpu", "--trainer.devices", 1, "--trainer.max_steps", 2, "--trainer.max_epochs", -1,
    "--trainer.log_every_n_steps", 1, "--model.warmup_steps", 1, "--data.batch_size", 32,
)  # fmt: skip


@pytest.fixture
def digits_nano(nano):
    """`someone/nano`, whose newest commit has the names of digits as labels; the one before has those of objects."""
    config = json.loads(nano.head.files["config.json"]) | {"label_names": DIGITS}
    nano.commit({"config.json": json.dumps(config).encode()})
    return nano


def results_of(tmp_path, name):
    (run,) = (tmp_path / "runs" / name).iterdir()
    return json.loads((run / "results.json").read_text())


def test_fit_records_the_commits_and_runs_again_offline(
    cli, command, hub, hub_environment, digits_nano, digits, tmp_path, tmp_path_factory
):
    token = hub.add_user("someone").token
    options = ("fit", "--model.backbone", "someone/nano", "--data.source", "someone/digits", *TINY)
    first = cli(*options, "--name", "first", check=0, **hub_environment, HF_TOKEN=token)
    assert "trained head kept: its 10 label names are the data's" in first.stdout
    results = results_of(tmp_path, "first")
    assert results["backbone"]["revision"] == digits_nano.head.id and results["data"]["revision"] == digits.head.id
    assert results["backbone"]["source"] == "someone/nano" and results["steps"] == 2
    (config,) = (tmp_path / "runs" / "first").glob(
        "*/config.yaml"
    )  # repeats this run even when the branches have moved on
    pinned = yaml.safe_load(config.read_text())
    assert [pinned[group]["revision"] for group in ("model", "data")] == [digits_nano.head.id, digits.head.id]

    requests = hub.requests.copy()
    again = command(*options, "--name", "again", check=0, HF_HUB_OFFLINE="1")
    assert hub.requests == requests and "trained head kept" in again.stdout
    offline = results_of(tmp_path, "again")
    assert [offline[key] for key in ("backbone", "data", "metrics")] == [
        results[key] for key in ("backbone", "data", "metrics")
    ]

    older = digits_nano.head.parent
    pinned = command(*options, "--name", "older", "--model.revision", older, check=0)
    assert "new zero-initialised head" in pinned.stdout
    assert results_of(tmp_path, "older")["backbone"]["revision"] == older

    # The token goes to the Hub alone, and is kept nowhere.
    assert all(request.authorized == ("/objects/" not in request.path) for request in requests)
    for folder in (tmp_path, tmp_path_factory.getbasetemp()):
        assert not [path for path in folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert token not in first.stdout + first.stderr


def test_a_revision_is_honoured_on_the_hub_and_in_the_cache(load, digits_nano, digits):
    old_model, old_data = digits_nano.head.parent, digits.head.id
    digits.commit({"data/train-00000-of-00001.parquet": digits.head.files["data/test-00000-of-00001.parquet"]})
    digits.tags["v1"] = old_data
    new = load("someone/nano", "someone/digits")
    assert new["model"]["commit"] == digits_nano.head.id and new["model"]["labels"] == DIGITS
    assert new["data"] == {"commit": digits.head.id, "images": {"train": 359, "test": 359}}
    old = load("someone/nano", "someone/digits", model_revision=old_model, data_revision="v1")
    assert old["model"]["commit"] == old_model and old["model"]["labels"][0] == "airplane"
    assert old["data"] == {"commit": old_data, "images": {"train": 1438, "test": 359}}
    # The old one was prepared last, which is the one that datasets would give offline.
    assert load("someone/nano", "someone/digits", HF_HUB_OFFLINE="1") == new
    assert (
        load("someone/nano", "someone/digits", model_revision=old_model, data_revision="v1", HF_HUB_OFFLINE="1") == old
    )


def test_a_data_set_without_a_card_is_read(load, hub, digits):
    files = {path: content for path, content in digits.head.files.items() if path.endswith(".parquet")}
    bare = hub.add_repository("dataset", "someone/bare", files)
    found = load(data="someone/bare")
    assert found["data"] == {"commit": bare.head.id, "images": {"train": 1438, "test": 359}}
    assert load(data="someone/bare", HF_HUB_OFFLINE="1") == found


@pytest.fixture
def pictures(hub):
    """A repository of images in folders whose names would mislead: upper case, a class called after a split."""
    files = {}
    for split, images in (("Train", 4), ("TEST", 2)):
        for i, name in enumerate(("train station", "Deep/er", "tests")):
            for k in range(images):
                png = io.BytesIO()
                Image.new("RGB", (8, 8), (40 * i, 20 * k, len(split))).save(png, "PNG")
                files[f"{split}/{name}/{k}.png"] = png.getvalue()
    files["README.md"] = b"---\nlicense: cc0-1.0\n---\n"
    files["notes.txt"] = b"by hand"
    return hub.add_repository("dataset", "someone/pictures", files)


def test_a_folder_of_images_on_the_hub_is_read_as_one_on_this_machine_is(load, pictures, tmp_path):
    for path, content in pictures.head.files.items():
        (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / path).write_bytes(content)
    here = load(data=str(tmp_path / "photos"))["data"]
    there = load(data="someone/pictures")
    assert there["data"] == {"commit": pictures.head.id, "images": {"train": 12, "test": 6}}
    assert here["images"] == there["data"]["images"]
    assert load(data="someone/pictures", HF_HUB_OFFLINE="1") == there


def test_offline_a_folder_of_images_is_whole_or_refused(load, pictures, tmp_path):
    pictures.commit({"Train/tests/9.png": pictures.head.files["Train/tests/0.png"]})
    home = {"HF_HOME": str(tmp_path)}
    assert load(data="someone/pictures", **home)["data"]["images"] == {"train": 13, "test": 6}
    (gone,) = (path for path in tmp_path.rglob("9.png") if "snapshots" in str(path))
    gone.unlink()
    assert_one_line(load(data="someone/pictures", HF_HUB_OFFLINE="1", **home), "is not in the cache")


def test_configurations_of_folders_of_images_are_what_the_card_says(load, pictures):
    assert_one_line(load(data="someone/pictures", data_config="odd"), "BuilderConfig 'odd' not found")
    card = yaml.safe_dump({"configs": [{"config_name": "few", "data_files": "TEST/t*/*"}]})
    pictures.commit({"README.md": f"---\n{card}---\n".encode()})
    assert load(data="someone/pictures", data_config="few")["data"]["images"] == {"train": 4}


def test_a_data_set_with_a_script_is_read_from_what_the_hub_made_of_it(load, hub, digits):
    data = {path: content for path, content in digits.head.files.items() if path.endswith(".parquet")}
    train, test = (next(content for path, content in data.items() if split in path) for split in ("train", "test"))
    scripted = hub.add_repository("dataset", "someone/scripted", {"scripted.py": b"1/0", "README.md": b"# S"})
    assert_one_line(load(data="someone/scripted"), "script of its own, which would have to be run; take")
    files = {"small/train/0000.parquet": test, "big/train/0000.parquet": train, "big/test/0000.parquet": test}
    converted = scripted.commit(files, revision="refs/convert/parquet")
    wanted = {"data": "someone/scripted", "data_revision": "refs/convert/parquet"}
    assert_one_line(load(**wanted), "has several configurations; use config big or small")
    found = load(**wanted, data_config="big")
    assert found["data"] == {"commit": converted, "images": {"train": 1438, "test": 359}}
    assert load(**wanted, data_config="big", HF_HUB_OFFLINE="1") == found
    assert_one_line(load(**wanted, data_config="small", HF_HUB_OFFLINE="1"), "is not in the cache")
    assert_one_line(load(**wanted, data_config="odd"), "has no configuration 'odd'; use config big or small")
    scripted.commit({"huge/partial-train/0000.parquet": train}, revision="refs/convert/parquet")
    assert_one_line(load(**wanted, data_config="huge"), "converted only a part of 'someone/scripted' (partial-train)")


def test_configurations_are_kept_apart_offline(load, hub, digits):
    configs = [
        {"config_name": "big", "data_files": "data/train-*"},
        {"config_name": "small", "data_files": "data/test-*"},
    ]
    digits.commit({"README.md": f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()})
    big, small = (load(data="someone/digits", data_config=config) for config in ("big", "small"))
    assert [found["data"]["images"] for found in (big, small)] == [{"train": 1438}, {"train": 359}]
    assert load(data="someone/digits", data_config="big", HF_HUB_OFFLINE="1") == big
    assert_one_line(load(data="someone/digits", HF_HUB_OFFLINE="1"), "use config big or small")
    assert_one_line(load(data="someone/digits", data_config="huge", HF_HUB_OFFLINE="1"), "is not in the cache")


def test_a_cache_without_links_is_read(load, nano):
    found = load("someone/nano", HF_HUB_DISABLE_SYMLINKS="1")
    assert found["model"]["commit"] == nano.head.id
    assert load("someone/nano", HF_HUB_DISABLE_SYMLINKS="1", HF_HUB_OFFLINE="1") == found


REFUSALS = {
    "no such model": (("someone/none", None), "no model 'someone/none' on the Hub"),
    "no such data set": ((None, "someone/none"), "no data set 'someone/none' on the Hub"),
    "not an id": (("a--b/c..d", None), "'a--b/c..d' is not the id of a model on the Hub"),
    "no such revision of the model": (("someone/nano", None, "v9"), "has no such revision; change --model.revision"),
    "no such revision of the data set": (
        (None, "someone/digits", "v9"),
        "has no such revision; change --data.revision",
    ),
    "gated model": (("other/gated", None), "is gated: ask for access at {hub}/other/gated, then set HF_TOKEN"),
    "gated data set": (
        (None, "other/gated"),
        "is gated: ask for access at {hub}/datasets/other/gated, then set HF_TOKEN",
    ),
    "private model": (("other/hidden", None), "or it is private; check --model.backbone, or set HF_TOKEN"),
    "private data set": ((None, "other/hidden"), "or it is private; check --data.source, or set HF_TOKEN"),
    "model without config.json": (("other/weights", None), "lacks a file that is needed, config.json"),
    "model without weights": (("other/config", None), "lacks a file that is needed, model.safetensors"),
    "data set without data": ((None, "other/empty"), "can't be read as an image data set"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_one_line_and_leaves_no_run(case, command, hub, nano, digits, tmp_path):
    files = nano.head.files
    hub.add_repository("model", "other/gated", files, gated=True)
    hub.add_repository("model", "other/hidden", files, private=True)
    hub.add_repository("model", "other/weights", {"model.safetensors": files["model.safetensors"]})
    hub.add_repository("model", "other/config", {"config.json": files["config.json"]})
    hub.add_repository("dataset", "other/gated", digits.head.files, gated=True)
    hub.add_repository("dataset", "other/hidden", digits.head.files, private=True)
    hub.add_repository("dataset", "other/empty", {"README.md": b"nothing here"})
    (model, data, *revision), message = REFUSALS[case]
    options = ["--model.backbone", model or "mixer_nano", "--data.source", data or "digits"]
    options += ["--model.revision" if model else "--data.revision", *revision] if revision else []
    result = command("fit", *options, *TINY, check=2, HF_TOKEN=hub.add_user("someone").token)
    assert_one_line(result.stderr, message.format(hub=hub.endpoint))
    assert not (tmp_path / "runs").exists()


def assert_one_line(stderr, message):
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    assert message in stderr


def test_a_token_decides_what_can_be_read_and_never_shows(load, hub, nano):
    files = nano.head.files
    gated = hub.add_repository("model", "other/gated", files, gated=True)
    hub.add_repository("model", "someone/own", files, private=True)
    token = hub.add_user("someone").token
    assert "HF_TOKEN" in load("someone/own") and load("someone/own", HF_TOKEN=token)["model"]
    gated.granted.add("someone")
    assert load("other/gated", HF_TOKEN=token)["model"]["commit"] == gated.head.id
    assert_one_line(
        load("someone/nano", HF_TOKEN="hf_unknown"), "refuses access to the model 'someone/nano' (401): check HF_TOKEN"
    )
    for odd in ("hf_sec\x0cret", "hf_sécret"):
        error = load("someone/nano", HF_TOKEN=odd)
        assert_one_line(error, "the token in HF_TOKEN can't be sent")
        assert odd not in error and "ret" not in error


def test_offline_what_is_not_in_the_cache_is_named(load, hub, nano, digits):
    assert_one_line(load("someone/nano", HF_HUB_OFFLINE="1"), "the model 'someone/nano' is not in the cache")
    assert_one_line(
        load(data="someone/digits", HF_HUB_OFFLINE="1"), "the data set 'someone/digits' is not in the cache"
    )
    assert not hub.requests


def test_a_cache_that_cannot_be_written_is_named(load, nano, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(load("someone/nano", HF_HOME=str(tmp_path / "file")), "set HF_HOME to another folder")


def test_one_file_of_a_repository_and_a_repository_without_safetensors_load(load, hub, nano):
    pickled = io.BytesIO()
    torch.save(safetensors.torch.load(nano.head.files["model.safetensors"]), pickled)
    weights = pickled.getvalue()
    files = {"config.json": nano.head.files["config.json"], "pytorch_model.bin": weights, "old/nano.pth": weights}
    repository = hub.add_repository("model", "someone/pickled", files)
    expected = load("someone/nano")["model"]["weights"]
    for source in ("someone/pickled", "someone/pickled:old/nano.pth"):
        loaded = load(source)["model"]
        assert (loaded["commit"], loaded["weights"]) == (repository.head.id, expected)
    assert "lacks a file that is needed, new/nano.pth" in load("someone/pickled:new/nano.pth")


def test_weights_whose_tag_misleads_come_with_a_warning(command, hub, nano):
    name = "timm/mixer_b16_224.goog_in21k_ft_in1k"  # what it holds here is small
    hub.add_repository("model", name, nano.head.files)
    shown = command("fit", "--model.backbone", name, "--data.source", "digits", *TINY, check=0).stdout
    assert f"warning    {name}: the tag says ImageNet-21k, but the accuracy matches" in shown
    assert (
        "warning"
        not in command("fit", "--model.backbone", "someone/nano", "--data.source", "digits", *TINY, check=0).stdout
    )


def test_a_download_says_its_size_once(command, nano, photos):
    first = command("predict", "someone/nano", photos, "--output", "first.csv", check=0).stdout
    size = len(nano.head.files["model.safetensors"]) / 1e6
    assert f"downloading model.safetensors of someone/nano ({size:.3g} MB)\n" in first
    assert "downloading" not in command("predict", "someone/nano", photos, "--output", "second.csv", check=0).stdout
