"""sweep by the real command."""

import json


def test_two_rates_are_tried_on_dev_and_the_better_one_is_tested(cli, tmp_path):
    options = ("--recipe", "digits", "--trainer.max_steps", 4, "--trainer.max_epochs", -1, "--model.warmup_steps", 0)
    tiny = (
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        1,
        "--data.num_workers",
        0,
        "--data.images_per_class",
        4,
    )
    said = cli(
        "sweep", "--vary", "model.lr=1e-9,0.1", *options, *tiny, "--data.images_per_class", 4, "--output", "s", check=0
    ).stdout
    found = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [len(trial["dev"]) for trial in found["trials"]] == [1, 1] and found["best"] == 1
    assert found["trials"][1]["dev"][0] > found["trials"][0]["dev"][0]
    for trial in found["trials"]:
        (run,) = trial["runs"]
        results = json.loads((tmp_path / run / "results.json").read_text())
        assert results["role"] == "val" and results["metrics"]["accuracy"] == trial["dev"][0]
    final = json.loads((tmp_path / found["final"] / "results.json").read_text())
    assert final["role"] == "test" and final["samples"] == 359 and final["train_samples"] == 40
    assert "0.1" in said and "of 359 images" in said and (tmp_path / "s" / "sweep.png").stat().st_size > 1000
