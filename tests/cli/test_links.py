"""What is a link to another place is not followed, neither to read and send nor to write."""

import shutil
from pathlib import Path

import pytest

from conftest import make_photos
from mixer_finetune import load_backbone
from mixer_finetune.cli.main import main
from mixer_finetune.errors import UserError
from mixer_finetune.runs import RunFolder


@pytest.fixture
def run(a_run, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(a_run, tmp_path / "run"))


@pytest.mark.parametrize("name", ["learning_curves.png", "model", "model/model.safetensors", "predictions.csv", "new"])
def test_no_command_follows_a_link_out_of_a_run_folder(run, name, tmp_path, capsys):
    secret = tmp_path / "secret"
    target = run / name
    if target.exists():
        shutil.move(target, secret)
    target.symlink_to(secret)
    for arguments in (
        ["push", str(run), "user/name", "--dry_run"],
        ["report", str(run)],
        ["export", str(run)],
        ["test", str(run)],
        ["predict", str(run), str(tmp_path)],
        ["fit", "--resume", str(run)],
    ):
        assert main(arguments) == 2
        assert f"{target} is a link that leads out of the run folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a link"):
        load_backbone(run)


def test_links_inside_a_run_folder_and_to_one_are_followed(run, tmp_path):
    (run / "checkpoints" / "newest.ckpt").symlink_to("last.ckpt")
    (tmp_path / "latest").symlink_to(run)
    assert RunFolder.open(tmp_path / "latest").results_file.is_file()
    load_backbone(tmp_path / "latest")


def test_predict_writes_through_no_link(run, tmp_path, capsys):
    photos = make_photos(tmp_path / "photos", {"a": 2})
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "out.csv.part").symlink_to(precious)
    arguments = ["predict", str(run), str(photos), "--output", str(tmp_path / "out.csv")]
    for more in ([], ["--resume"]):
        assert main([*arguments, *more]) == 2
        assert "out.csv.part is a link, which is not followed; remove it" in capsys.readouterr().err
    (tmp_path / "out.csv.part").unlink()
    (tmp_path / "out.csv").symlink_to(precious)  # which is replaced, as any output
    assert main([*arguments, "--overwrite"]) == 0
    assert precious.read_text() == "mine" and len((tmp_path / "out.csv").read_text().splitlines()) == 3
