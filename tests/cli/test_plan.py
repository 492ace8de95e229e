"""plan: what a run would be, and what is refused before it is made."""

import re

import pytest

TINY = ("--recipe", "digits", "--model.backbone", "mixer_nano_32", "--trainer.accelerator", "cpu",
        "--trainer.devices", "1", "--data.num_workers", "0")  # fmt: skip


def test_a_plan_says_what_the_run_would_be_and_leaves_nothing_behind(cli, tmp_path):
    said = cli(
        "plan", *TINY, "--measured_steps", 2, "--trainer.max_epochs", 3, "--data.batch_size", 100, check=0
    ).stdout
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if line.strip())
    assert "652,650 of 652,650 parameters, 39 steps (3 epochs), 100 images a step" in lines["training"]
    assert lines["optimizer"] == "sgd, learning rate 0.2, 3 warm-up steps"
    assert lines["computes"].startswith("0.0428 GMACs an image")
    seconds = float(re.match(r"([\d.]+) s a step \(median of 2 steps; the first took [\d.]+ s\); [\d,]+ images/s in",
                             lines["measured"])[1])  # fmt: skip
    assert 0.005 < seconds < 60 and re.search(r"[GM]B at most, of the process", lines["memory"])
    assert re.match(r"about .*: training .*, dev split .*, results .*; the report comes on top", lines["takes"])
    # 652,650 float32 numbers; a checkpoint holds the momentum beside them.
    assert lines["writes"].startswith("runs/digits/<date-time>: model 2.61 MB, last.ckpt and best.ckpt of 5.22 MB each")
    assert lines["pushes"] == "nothing"
    assert not list(tmp_path.iterdir())


def test_the_parts_of_a_plan_are_those_of_the_run():
    from mixer_finetune.engine.plan import plan

    found = plan([*TINY, "--trainer.max_steps", "4", "--trainer.max_epochs", "-1", "--model.train", "head"], 0)
    assert (found.steps, found.measured, found.seconds, found.why_not) == (4, None, {}, "it was not asked for")
    assert found.splits == {"train": 1295, "val": 143, "test": 359} and found.epochs == pytest.approx(4 / 21)
    assert any("trains the head alone" in line for line in found.header)
    two = plan([*TINY[:-4], "--trainer.devices", "2", "--recipe", "ddp", "--trainer.strategy", "ddp"], 3)
    assert "2 devices" in two.why_not


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trainer.max_steps", 0), "the run has no step; raise --trainer.max_epochs, --trainer.max_steps or"),
        (("--push", "me/model"), "pushing needs a token that may write"),
        (("--trainer.limit_val_batches", 0), "leaves nothing of the dev split's 143 images"),
        (("--weights", "best", "--data.val_fraction", 0), "the best weights need a dev split"),
        (("--measured_steps", "few"), "measured_steps is a whole number, got few; change --measured_steps"),
        (("--data.batch_sise", 3), "did you mean --data.batch_size"),
        (("--resume", "runs/x"), "plan is for a new run"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(cli, tmp_path, options, said):
    refused = cli("plan", *TINY, *options, check=2, HF_TOKEN="").stderr
    assert said in refused and refused.count("\n") == 1 and not list(tmp_path.iterdir())


def test_no_room_on_the_disk_is_refused(monkeypatch):
    from mixer_finetune import UserError
    from mixer_finetune.engine import plan as module

    monkeypatch.setattr(module, "_free", lambda folder: 10_000)
    with pytest.raises(UserError, match=r"writes about 1\d\.\d MB into runs/digits, and 10 kB are free there"):
        module.plan(TINY, 0)
