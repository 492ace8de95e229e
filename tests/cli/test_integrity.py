"""What a run wrote is what later commands read: damage and edits are found, and named."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from mixer_finetune import load_backbone
from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.report import write_report
from mixer_finetune.runs import RunFolder
from mixer_finetune.sharing.export import export
from mixer_finetune.sharing.push import contents
from mixer_finetune.training.checkpoints import resume_point


@pytest.fixture
def run(a_run, tmp_path):
    """A copy of a finished run."""
    return RunFolder(Path(shutil.copytree(a_run, tmp_path / "run")))


def flip(path, at=0.6):
    """Change one bit inside a file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def test_results_state_the_hashes_of_what_the_run_wrote(run):
    stated = json.loads(run.results_file.read_text())["files"]
    assert stated == {
        name: hashlib.sha256((run.path / name).read_bytes()).hexdigest()
        for name in (
            "model/config.json", "model/model.safetensors", "config.yaml", "data.json", "metrics.csv", "training.json",
            "predictions.csv",
        )
    }  # fmt: skip
    model = {name: value for name, value in stated.items() if name.startswith("model/")}
    assert json.loads(run.training_file.read_text())["files"] == model


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_of_the_model_is_found_by_all_that_load_it(run, name):
    flip(run.model / name)
    reads = [
        lambda: load_backbone(run),
        lambda: load_backbone(run.model),
        lambda: load_backbone(run.model / "model.safetensors"),
        lambda: write_report(run),
        lambda: export(run, "onnx"),
        lambda: contents(run, "user/name"),
    ]
    for read in reads if name == "model.safetensors" else reads[:2]:
        with pytest.raises(UserError, match=rf"{name} is not as its run wrote it: its sha256 .* in results.json"):
            read()
    # Before there are results, training.json tells; elsewhere, a model folder is no run's any more.
    run.results_file.unlink()
    with pytest.raises(UserError, match="the one in training.json"):
        load_backbone(run)
    if name == "model.safetensors":
        load_backbone(shutil.copytree(run.model, run.path.parent / "elsewhere"))


def test_an_edited_predictions_csv_is_noticed(run):
    text = run.predictions_file.read_text()
    run.predictions_file.write_text(text.replace("blue", "green", 1))
    for read in (lambda: write_report(run), lambda: contents(run, "user/name")):
        with pytest.raises(UserError, match="predictions.csv is not as its run wrote it"):
            read()


def test_a_run_of_an_earlier_version_states_no_hashes_and_passes(run):
    for file in (run.results_file, run.training_file):
        content = json.loads(file.read_text())
        del content["files"]
        file.write_text(json.dumps(content))
    flip(run.model / "model.safetensors")
    load_backbone(run)
    contents(run, "user/name")


def test_a_flipped_bit_of_a_checkpoint_is_found_and_the_other_one_is_taken(run, caplog):
    flip(run.last_checkpoint)
    torch.load(run.last_checkpoint, weights_only=True)  # torch itself does not notice
    with pytest.raises(UserError, match="the file is damaged"):
        load_backbone(run.last_checkpoint)
    with caplog.at_level("INFO"):
        assert resume_point(run) == run.best_checkpoint
    assert "the file is damaged" in caplog.text and "going on from best.ckpt instead" in caplog.text


def test_files_of_torch_without_checksums_are_read(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "none.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "none.pth"):
        assert load_checkpoint(tmp_path / name)["a"].tolist() == [1, 1, 1]
