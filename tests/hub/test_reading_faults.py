"""Reads of the Hub while it fails: transient faults are overcome, others are one line, damaged files never taken."""

import os
from pathlib import Path

import pytest
import safetensors.torch

from hub.faults import cut, drop, flip, stall, status
from hub.loading import weights_hash

WEIGHTS = r"model\.safetensors"
STORED = r"^/objects/.*safetensors"
PARQUET = r"^/objects/.*train.*parquet"


@pytest.fixture
def stays(hub):
    """Have a fault stay."""
    return lambda action, **where: hub.faults.add(action, times=None, **where)


def assert_one_line(stderr, *messages):
    assert isinstance(stderr, str) and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    for message in messages:
        assert message in stderr


PASSING = {
    "503 to HEAD of the config": (status(503), "HEAD", r"config\.json"),
    "dropped HEAD of the config": (drop(), "HEAD", r"config\.json"),
    "429 to HEAD of the config": (status(429, retry_after=1), "HEAD", r"config\.json"),
    "dropped GET of the config": (drop(), "GET", r"config\.json"),
    "dropped HEAD of the weights": (drop(), "HEAD", WEIGHTS),
    "503 to GET of the weights": (status(503), "GET", STORED),
    "429 to GET of the weights": (status(429, retry_after=0), "GET", STORED),
    "dropped GET of the weights": (drop(), "GET", STORED),
    "weights cut off": (cut(), "GET", STORED),
    "weights reset in mid-body": (cut(reset=True), "GET", STORED),
    "stalled HEAD": (stall(90), "HEAD", WEIGHTS),
    "a byte of the weights flipped": (flip(), "GET", STORED),
    "a byte of the config flipped": (flip(), "GET", r"config\.json"),
}


@pytest.mark.parametrize("case", PASSING)
def test_a_fault_that_passes_does_not_keep_the_model_away(case, load, hub, nano):
    action, method, path = PASSING[case]
    fault = hub.faults.add(action, method=method, path=path)
    found = load("someone/nano", timeout=60)
    assert fault.count == 1
    assert found["model"]["commit"] == nano.head.id
    assert found["model"]["weights"] == weights_hash(safetensors.torch.load(nano.head.files["model.safetensors"]))
    assert found["notes"] == ""


PASSING_FOR_DATA = {
    "503 to HEAD of the card": (status(503), "HEAD", r"README\.md"),
    "dropped HEAD of a file that is not there": (drop(), "HEAD", r"dataset_infos"),
    "503 to the revision": (status(503), "GET", r"/api/datasets/.*/revision/"),
    "dropped list of files": (drop(), "GET", r"/tree/"),
    "stalled list of files": (stall(90), "GET", r"/tree/"),
    "503 to GET of a parquet file": (status(503), "GET", PARQUET),
    "parquet file reset in mid-body": (cut(reset=True), "GET", PARQUET),
    "a byte of a parquet file flipped": (flip(), "GET", PARQUET),
}


@pytest.mark.parametrize("case", PASSING_FOR_DATA)
def test_a_fault_that_passes_does_not_keep_the_data_away(case, load, hub, digits):
    action, method, path = PASSING_FOR_DATA[case]
    fault = hub.faults.add(action, method=method, path=path)
    found = load(data="someone/digits", timeout=60)
    assert fault.count == 1 and len(hub.requested(method, path)) > 1
    assert found == {"data": {"commit": digits.head.id, "images": {"train": 1438, "test": 359}}, "notes": ""}


def test_a_hub_that_stays_down_is_one_line_and_leaves_no_run(command, hub, tmp_path):
    hub.stop()
    for model, data in (("someone/nano", "digits"), ("mixer_nano", "someone/digits")):
        result = command(
            "fit", "--model.backbone", model, "--data.source", data, "--trainer.accelerator", "cpu", check=2
        )
        assert_one_line(result.stderr, f"the Hub ({hub.endpoint}) can't be reached", "(", "refused")
    assert not (tmp_path / "runs").exists()


def test_a_fault_that_stays_ends_in_one_line(load, hub, nano, digits, stays):
    stays(status(503), method="HEAD")
    assert_one_line(load("someone/nano"), "can't be reached", "it answers 503")
    assert len(hub.requests) == 4
    hub.faults.clear()
    stays(stall(90), method="HEAD")
    assert_one_line(load(data="someone/digits", HF_HUB_ETAG_TIMEOUT="1"), "can't be reached", "no answer in time")
    hub.faults.clear()
    stays(status(503), method="GET", path=STORED)
    assert_one_line(load("someone/nano"), "can't be reached", "it answers 503")


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(load, hub, nano, stays):
    stays(status(429, retry_after=3600))
    assert_one_line(load("someone/nano"), "it answers 429 and asks to wait 3600 s")
    assert len(hub.requests) == 1


def test_files_that_stay_damaged_are_refused_and_not_kept(load, hub, nano, digits, stays, hub_environment):
    for request, path in ((("someone/nano", None), STORED), ((None, "someone/digits"), PARQUET)):
        fault = stays(flip(), method="GET", path=path)
        assert_one_line(load(*request), "arrives damaged (its hash is not the one that the Hub states), twice over")
        assert fault.count == 2
    hub.faults.clear()
    cached = {path.name for path in Path(hub_environment["HF_HOME"]).rglob("*") if path.is_file()}
    assert not [name for name in cached if name.endswith(".arrow")]
    assert load("someone/nano", "someone/digits")["data"]["images"]["train"] == 1438


def test_a_file_damaged_in_the_cache_is_fetched_again(load, hub, nano, hub_environment):
    good = load("someone/nano")
    (weights,) = Path(hub_environment["HF_HOME"]).rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF
    weights.write_bytes(content)
    assert_one_line(
        load("someone/nano", HF_HUB_OFFLINE="1"), "model.safetensors of 'someone/nano' is damaged in the cache"
    )
    fetched = len(hub.requested("GET", STORED))
    assert load("someone/nano") == good and len(hub.requested("GET", STORED)) == fetched + 1
    assert os.path.islink(weights)


def test_the_cache_serves_when_the_hub_is_down_and_says_so(load, hub, nano, digits):
    before = load("someone/nano", "someone/digits")
    hub.stop()
    found = load("someone/nano", "someone/digits")
    assert "'someone/nano' at main is taken from the cache" in found.pop("notes")
    assert found == {key: before[key] for key in ("model", "data")}


def test_tables_of_another_commit_are_never_taken_for_those_asked_for(load, hub, digits, stays):
    load(data="someone/digits")
    digits.commit({"data/train-00000-of-00001.parquet": digits.head.files["data/test-00000-of-00001.parquet"]})
    hub.faults.add(status(503), path=r"/api/datasets/")
    assert load(data="someone/digits")["data"] == {"commit": digits.head.id, "images": {"train": 359, "test": 359}}
    digits.commit({"README.md": b"another card"})
    stays(status(503), path=r"/api/datasets/")
    assert_one_line(load(data="someone/digits"), "can't be reached")


def test_a_full_disk_is_one_line_and_a_second_try_succeeds(load, hub, nano, digits, small_disk):
    cache, make_room = small_disk  # 64 KiB, less than either
    for request in (("someone/nano", None), (None, "someone/digits")):
        line = load(*request, HF_HOME=str(cache))
        assert_one_line(line, f"the cache {cache} can't be written (No space left on device)")
    make_room(32_000_000)
    assert load("someone/nano", "someone/digits", HF_HOME=str(cache))["model"]["commit"] == nano.head.id
