"""A data set of the Hub that is streamed: by the real client, through faults, kills and two processes."""

import io
import json
import os
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import forked
from conftest import FIT, program
from hub.faults import cut, drop, status
from mixer_finetune.backbones.foreign import load_checkpoint

SHARDS, ROWS, GROUP = 3, 20, 4


def shard(number):
    generator = np.random.default_rng(number)
    images, labels = [], []
    for i in range(ROWS):
        pixels = generator.integers(0, 90, (90, 90, 3), dtype=np.uint8)
        pixels[..., i % 3] += 120
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{number}-{i}.png"})
        labels.append(i % 3)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"image": {"_type": "Image"}, "label": {"names": ["red", "green", "blue"], "_type": "ClassLabel"}}
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=GROUP)
    return buffer.getvalue()


@pytest.fixture
def large(hub):
    """A data set of three shards of five row groups each."""
    files = {f"data/train-{i:05d}-of-{SHARDS:05d}.parquet": shard(i) for i in range(SHARDS)}
    files["data/test-00000-of-00001.parquet"] = shard(9)
    return hub.add_repository("dataset", "someone/large", files)


OPTIONS = (
    "--model.backbone", "mixer_nano", *FIT, "--data.val_fraction", 0.2, "--data.color_jitter", 0.2,
    "--data.mixup", 0.5, "--trainer.max_epochs", 2, "--save_every_n_steps", 1,
)  # fmt: skip
STREAM = ("--data.source", "someone/large", "--data.stream", "true", "--data.stream_buffer", 12)


def run_of(folder, name):
    (run,) = (folder / "runs" / name).iterdir()
    return run


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same(one, other, limit=0.0):
    for key, value in weights(one).items():
        assert (weights(other)[key] - value).abs().max() <= limit, key


def test_a_stream_is_trained_on_and_fetched_in_parts(command, hub, large, tmp_path):
    said = command("fit", *STREAM, *OPTIONS, "--name", "stream", check=0).stdout
    assert "someone/large: streamed images in 'image', labels in 'label' (3 classes), train = train (60)" in said
    assert "images are not compared with each other: they are streamed" in said
    results = json.loads((run_of(tmp_path, "stream") / "results.json").read_text())
    assert results["data"]["revision"] == large.head.id and results["samples"] == ROWS
    asked = [request for request in hub.requests if "/objects/" in request.path and request.method == "GET"]
    assert asked and {request.status for request in asked} == {206}
    largest = max(request.size for request in asked)
    whole = max(len(content) for path, content in large.head.files.items() if path.endswith(".parquet"))
    assert largest < whole / 3


FAULTS = {
    "503": status(503),
    "dropped": drop(),
    "reset in the middle of a row group": cut(reset=True),
    "cut off": cut(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_middle_of_a_shard_loses_and_repeats_nothing(fault, command, hub, large, tmp_path):
    command("fit", *STREAM, *OPTIONS, "--name", "whole", check=0)
    hub.faults.add(FAULTS[fault], method="GET", path=r"^/objects/.*train.*parquet", times=3)
    home = str(tmp_path / "fresh")
    command("fit", *STREAM, *OPTIONS, "--name", "faulty", check=0, HF_HOME=home)
    assert_same(run_of(tmp_path, "whole"), run_of(tmp_path, "faulty"))


def test_a_run_that_is_killed_goes_on_at_the_next_sample(command, hub, hub_environment, large, tmp_path):
    options = ("fit", *STREAM, *OPTIONS, "--data.num_workers", 2)
    command(*options, "--name", "whole", check=0)
    whole = run_of(tmp_path, "whole")
    running = forked.start(forked.command, tuple(map(str, (*options, "--name", "killed"))), hub_environment, tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("killed/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.process.pid, signal.SIGKILL)
    running.process.join()
    killed = run_of(tmp_path, "killed")
    steps = load_checkpoint(killed / "checkpoints" / "last.ckpt")["global_step"]
    assert 0 < steps < 12, "the run ended before it could be killed"
    command("fit", "--resume", killed, check=0)
    assert_same(whole, killed)


def test_two_processes_give_the_result_of_one(command, hub_environment, large, tmp_path):
    options = ("fit", *STREAM, *OPTIONS, "--trainer.precision", "64-true")
    command(*options, "--name", "one", check=0)
    environment = {**hub_environment, "OMP_NUM_THREADS": "1"}
    program(tmp_path, environment, *options, "--recipe", "ddp", "--trainer.devices", 2, "--name", "two")
    assert_same(run_of(tmp_path, "one"), run_of(tmp_path, "two"), 1e-10)


def test_a_hub_that_stays_away_is_one_line_that_says_how_to_go_on(command, hub, large, tmp_path):
    hub.faults.add(drop(), method="GET", path=r"^/objects/.*train.*parquet", times=None)
    refused = command("fit", *STREAM, *OPTIONS, "--name", "away", check=2, timeout=200).stderr
    assert refused.startswith("error: ") and refused.count("\n") == 1 and "can't be read now" in refused


def test_offline_and_folders_are_refused(command, hub, large):
    refused = command("fit", *STREAM, *OPTIONS, check=2, HF_HUB_OFFLINE="1").stderr
    assert "a stream needs the Hub" in refused and refused.count("\n") == 1
