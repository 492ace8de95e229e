"""Pushing a run: what arrives, who can load it, and what every failure leaves on the Hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import forked
from cli import interrupting
from conftest import FIT, fitted, make_photos
from hub import faults

SENT = {
    "README.md",
    "calibration.json",
    "config.json",
    "config.yaml",
    "confusion_matrix.png",
    "learning_curves.png",
    "model.safetensors",
    "results.json",
}
OF_THE_HUB = {".gitattributes"}


@pytest.fixture
def run(a_run, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(a_run, tmp_path / "run"))


@pytest.fixture
def someone(hub):
    return hub.add_user("someone", role="write")


@pytest.fixture
def push(command, run, someone):
    def do(*options, repo="someone/shapes", check=None, **changes):
        return command("push", run, repo, *options, check=check, **{"HF_TOKEN": someone.token, **changes})

    return do


def remote(hub, name="someone/shapes"):
    return hub.repositories.get(("model", name))


def whole(repository, before=2):
    """Whether the repository holds the push, as one commit on top of the first."""
    return set(repository.head.files) == SENT | OF_THE_HUB and len(repository.commits) == before


def test_a_push_is_one_commit_of_the_model_and_nothing_private(push, hub, run):
    out = push("--private", check=0).stdout
    repository = remote(hub)
    assert whole(repository) and repository.private and repository.head.id[:12] in out
    assert repository.head.files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    for name, content in repository.head.files.items():
        assert b"private_place" not in content, name
    config = yaml.safe_load(repository.head.files["config.yaml"])
    assert config["data"]["source"] == "shapes" and config["trainer"]["logger"] is None
    card = repository.head.files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    (result,) = metadata["model-index"][0]["results"]
    accuracy = json.loads((run / "results.json").read_text())["metrics"]["accuracy"]
    assert result["metrics"][0]["value"] == pytest.approx(accuracy, abs=1e-5) and metadata["license"] == "apache-2.0"
    assert "| blue |" in card and "red <b>" not in card.partition("## Results")[2]
    assert metadata["library_name"] == "mixer_finetune" and "does not load in timm" in card


def test_what_a_run_says_of_its_trust_is_pushed_and_predict_reads_it(push, command, hub, run, photos, tmp_path):
    push(check=0)
    sent = json.loads(remote(hub).head.files["calibration.json"])
    assert sent == json.loads((run / "model" / "calibration.json").read_text()) and sent["images"] > 0
    options = ("--ood", "--device", "cpu", "--output", tmp_path / "found.csv")
    said = command("predict", "someone/shapes", photos / "red", *options, check=0).stdout
    assert "of 16 images are unlike those of the data" in said


PLACE = "/home/me/private_place/shapes"
HOLDING_PATHS = {
    "data": {"image_root": "private_place/shapes", "splits": [PLACE, {PLACE: f"root={PLACE}/a b, n=3"}]},
    "optimizer": {
        "class_path": "mine.Adam",
        "init_args": {"log": "~/private_place/log.txt", "to": "../private_place/x"},
    },
    "extra": {
        "callbacks": [{"class_path": "mine.Watch", "init_args": {"folder": PLACE, "monitor": "val/accuracy"}}],
        "texts": [
            "private_place/the shapes",
            "root=private_place/shapes, n=3",
            f"file://{PLACE}",
            f"read {PLACE}/a.jpg",
            r"C:\private_place\shapes",
            f"in:{PLACE}",
            f"//{PLACE}",
            "https://example.org/kept/as/it/is",
            "someone/nano",
            "a/b or 1/2",
        ],
    },
}


def test_a_path_in_any_option_is_cut_to_its_last_part(push, hub, run, tmp_path):
    """In lists, keys, nested options and inside a text; also a relative path that leads somewhere."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= HOLDING_PATHS["data"]
    config |= {key: HOLDING_PATHS[key] for key in ("optimizer", "extra")}
    config["trainer"]["callbacks"] = HOLDING_PATHS["extra"]["callbacks"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for name in ("shapes", "the shapes"):
        (tmp_path / "private_place" / name).mkdir(parents=True)
    push(check=0)
    sent = yaml.safe_load(remote(hub).head.files["config.yaml"])
    assert "private_place" not in yaml.safe_dump(sent) and "/home" not in yaml.safe_dump(sent)
    assert sent["data"]["image_root"] == "shapes"
    assert sent["data"]["splits"] == ["shapes", {"shapes": "root=a b, n=3"}]
    assert sent["optimizer"] == {"class_path": "mine.Adam", "init_args": {"log": "log.txt", "to": "x"}}
    assert sent["extra"]["callbacks"][0]["init_args"] == {"folder": "shapes", "monitor": "val/accuracy"}
    kept = HOLDING_PATHS["extra"]["texts"][-3:]
    cut = ["the shapes", "root=shapes, n=3", "shapes", "read a.jpg", "shapes", "in:shapes", "shapes"]
    assert sent["extra"]["texts"] == [*cut, *kept]
    assert [sent["trainer"][name] for name in ("logger", "callbacks", "plugins")] == [None] * 3


def test_results_of_a_part_of_the_split_are_pushed_by_force_alone(push, hub, run):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "split_samples": 10_000}))
    refused = push(check=2)
    assert "images of the split; evaluate all of it, or push them with --force" in refused.stderr
    assert remote(hub) is None
    push("--force", check=0)
    assert whole(remote(hub))


def test_names_of_classes_that_look_like_paths_are_sent_as_they_are(push, hub, run):
    names = ["/m/01g317", "../b", "red <b>"]
    for path, key in ((run / "model" / "config.json", "label_names"), (run / "results.json", "classes")):
        path.write_text(json.dumps({**json.loads(path.read_text()), key: names}))
    predictions = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(predictions.replace("blue", names[0]).replace("green", names[1]))
    push(check=0)
    assert json.loads(remote(hub).head.files["config.json"])["label_names"] == names
    assert json.loads(remote(hub).head.files["results.json"])["classes"] == names


def test_a_second_push_changes_nothing_and_says_so(push, hub):
    push(check=0)
    head = remote(hub).head.id
    assert "nothing to push" in push(check=0).stdout and remote(hub).head.id == head


def test_a_dry_run_sends_nothing(push, hub):
    assert "expected user/name" in push("--dry_run", repo="shapes", check=2).stderr
    out = push("--dry_run", check=0, HF_TOKEN="").stdout
    assert all(name in out for name in SENT) and remote(hub) is None and not hub.requested("POST", ".")


def test_what_others_did_is_not_overwritten_but_a_changed_run_follows_its_own_push(push, hub, run):
    push(check=0)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "steps": 99}))
    push(check=0)
    assert json.loads(remote(hub).head.files["results.json"])["steps"] == 99
    remote(hub).commit({"README.md": b"edited by hand"})
    result = push(check=2)
    assert "did not make" in result.stderr and "--force" in result.stderr
    assert remote(hub).head.files["README.md"] == b"edited by hand"
    push("--force", check=0)
    assert remote(hub).head.files["README.md"].startswith(b"---") and len(remote(hub).commits) == 5


def test_branches_and_pull_requests(push, hub):
    repository = hub.add_repository("model", "someone/shapes", {"notes.txt": b"theirs"})
    head = repository.head.id
    push("--create_pr", check=0)
    assert repository.head.id == head and SENT <= set(repository.at("refs/pr/1").files)
    push("--revision", "dev", "--force", check=0)
    assert repository.head.id == head and SENT <= set(repository.at("dev").files)


@pytest.mark.parametrize(
    ("changes", "repo", "says"),
    [
        ({"HF_TOKEN": ""}, "someone/shapes", "needs a token"),
        ({"HF_TOKEN": "hf_unknown"}, "someone/shapes", "does not know the token"),
        ({}, "another/shapes", "can't write to another/"),
        ({}, "shapes", "user/name"),
        ({}, "someone/..x", "can't be a repository's name"),
        ({"HF_HUB_OFFLINE": "1"}, "someone/shapes", "offline"),
    ],
)
def test_what_can_not_be_pushed_is_refused_in_one_line(push, hub, changes, repo, says):
    result = push(repo=repo, check=2, **changes)
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not hub.repositories


def test_a_token_that_only_reads_is_refused(push, hub):
    reader = hub.add_user("reader", role="read")
    assert "only read" in push(repo="reader/x", check=2, HF_TOKEN=reader.token).stderr and not hub.repositories


ANY = dict(method="POST", path="/commit/")


@pytest.mark.parametrize("fault", ["lost", "dropped", "503", "429", "stalled"])
def test_a_commit_that_fails_in_passing_is_made_exactly_once(push, hub, fault):
    kinds = {
        "lost": faults.lose_reply(),
        "dropped": faults.drop(),
        "503": faults.status(503),
        "429": faults.status(429, retry_after=1),
        "stalled": faults.stall(30),
    }
    hub.faults.add(kinds[fault], **ANY, times=1)
    push(check=0, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert whole(remote(hub))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "whoami"),
        ("POST", "repos/create"),
        ("GET", "/api/models/"),
        ("POST", "preupload"),
        ("PUT", "^/objects/"),
    ],
)
@pytest.mark.parametrize("fault", ["503", "drop", "stall"])
def test_a_failure_in_passing_anywhere_else_is_tried_again(push, hub, method, path, fault):
    kinds = {"503": faults.status(503), "drop": faults.drop(), "stall": faults.stall(30)}
    injected = hub.faults.add(kinds[fault], method=method, path=path, times=1)
    push(check=0, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert injected.count == 1 and whole(remote(hub))


def test_a_commit_that_others_make_during_the_push_stays(push, hub):
    repository = hub.add_repository("model", "someone/shapes", {})

    def another_first(answer):
        repository.commit({"notes.txt": b"theirs"})
        return answer()

    hub.faults.add(another_first, **ANY, times=1)
    result = push(check=2)
    assert "has moved on" in result.stderr and "--force" in result.stderr.splitlines()[-1]
    assert set(repository.head.files) - OF_THE_HUB == {"notes.txt"}
    assert "did not make" in push(check=2).stderr
    push("--force", check=0)
    assert SENT | {"notes.txt"} <= set(repository.head.files)


def test_a_hub_without_xet_storage_is_named_with_the_way_round(push, hub):
    result = push(check=2, HF_HUB_DISABLE_XET="0")
    assert "no xet storage: set HF_HUB_DISABLE_XET=1" in result.stderr.splitlines()[-1]
    assert len(hub.requested("GET", "xet-write-token")) == 1 and remote(hub).head.files.keys() <= OF_THE_HUB


def test_a_hub_that_refuses_the_commit_for_good_stays_unchanged_and_a_second_try_succeeds(push, hub):
    hub.faults.add(faults.status(503), **ANY, times=None)
    result = push(check=2)
    assert "does not take the commit" in result.stderr and remote(hub).head.files.keys() <= OF_THE_HUB
    hub.faults.clear()
    push(check=0)
    assert whole(remote(hub))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (400, "it does not understand what it is asked (no such field)"),
        (404, "it knows no such address; check HF_ENDPOINT"),
        (413, "what is sent is larger than it takes"),
        (451, "it refuses what it is asked"),
    ],
)
def test_a_refusal_says_what_it_is(push, hub, code, says):
    hub.faults.add(faults.status(code, message="no such field"), **ANY, times=None)
    result = push(check=2)
    assert f"answers {code} about the model 'someone/shapes': {says}" in result.stderr
    assert "Traceback" not in result.stderr and remote(hub).head.files.keys() <= OF_THE_HUB


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("whoami", b"<html>a proxy</html>"),
        ("whoami", b"{}"),
        ("whoami", b"[]"),
        ("repos/create", b"\xff"),
        ("/api/models/", b"null"),
        ("/api/models/", b"{}"),
        ("preupload", b'{"files": 1}'),
        ("/commit/", b"{}"),
    ],
    ids=str,
)
def test_an_answer_that_makes_no_sense_is_one_line(push, hub, path, body):
    hub.faults.add(faults.reply(body), path=path, times=None)
    result = push(check=2)
    assert "Traceback" not in result.stderr and result.stderr.splitlines()[-1].startswith("error: "), result.stderr
    assert "HF_ENDPOINT" in result.stderr or "later" in result.stderr or "again" in result.stderr


@pytest.mark.parametrize(("method", "path"), [("POST", "preupload"), ("PUT", "^/objects/"), ("POST", "/commit/")])
def test_a_hub_that_asks_to_wait_for_long_is_not_waited_for_in_silence(push, hub, method, path):
    injected = hub.faults.add(faults.status(429, retry_after=900), method=method, path=path, times=None)
    began = time.monotonic()
    assert "it answers 429 and asks to wait 900 s" in push(check=2).stderr
    assert injected.count == 1 and time.monotonic() - began < 30
    hub.faults.clear()
    if method != "PUT":
        return  # one real wait is enough
    hub.faults.add(faults.status(429, retry_after=6), method=method, path=path, times=1)
    said = push(check=0).stderr
    assert "and asks to wait 6 s" in said and f"warning: the Hub answers 429 to {method} of " in said


def test_a_commit_that_can_not_be_checked_is_known_as_made(push, hub, run):
    fault = {}

    def then_fails(answer):
        fault["it"] = hub.faults.add(faults.status(503), method="GET", path="/api/models/", times=None)
        return answer()

    hub.faults.add(then_fails, **ANY, times=1)
    result = push(check=2)
    head = remote(hub).head.id
    assert f"the commit {head[:12]} is made" in result.stderr and "could not be checked" in result.stderr
    assert json.loads((run / "push.json").read_text())["commit"] == head
    hub.faults.clear()
    assert "nothing to push" in push(check=0).stdout


def test_a_hub_that_can_not_be_reached_is_one_line(push, hub):
    hub.stop()
    try:
        result = push(check=2)
    finally:
        hub.start()
    assert "can't be reached to write" in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_fit_checks_the_push_before_training_and_pushes_after(cli, hub, hub_environment, someone, tmp_path):
    photos = make_photos(tmp_path / "photos", {"blue": 8, "red": 8})
    options = ("fit", "--data.source", photos, "--model.backbone", "mixer_nano", *FIT, "--push", "someone/fresh")
    refused = cli(*options, check=2, **hub_environment)
    assert "needs a token" in refused.stderr and not (tmp_path / "runs").exists()
    done = cli(*options, check=0, **hub_environment, HF_TOKEN=someone.token)
    assert "pushed" in done.stdout and whole(remote(hub, "someone/fresh"))
    assert yaml.safe_load(remote(hub, "someone/fresh").head.files["config.yaml"])["push"] is None


def test_a_push_that_was_interrupted_or_is_asked_for_later_is_made_by_resuming(
    cli, hub, hub_environment, someone, tmp_path
):
    photos = make_photos(tmp_path / "photos", {"blue": 8, "red": 8})
    options = ("fit", "--data.source", str(photos), "--model.backbone", "mixer_nano", *map(str, FIT))
    user = {**hub_environment, "HF_TOKEN": someone.token}
    place = ("mixer_finetune.engine.finish:push", int(signal.SIGTERM), 1)
    stopped = forked.start(interrupting.command, (*place, *options, "--push", "someone/late"), user, tmp_path)
    result = stopped.finished(120)
    (run,) = (tmp_path / "runs").glob("*/*")
    assert result.returncode == 1
    on = f"go on with: mixer-finetune fit --resume {run.relative_to(tmp_path)}"
    assert result.stderr == f"interrupted by SIGTERM; {on}\n"
    resumed = cli("fit", "--resume", run, check=0, **user)
    assert "missing: push" in resumed.stdout and whole(remote(hub, "someone/late"))
    assert "is finished" in cli("fit", "--resume", run, check=0, **user).stdout
    assert len(remote(hub, "someone/late").commits) == 2  # the repository's own and the run's
    # Another repository, asked for on resuming.
    cli("fit", "--resume", run, "--push", "someone/second", check=0, **user)
    assert whole(remote(hub, "someone/second"))


def test_timm_transformers_and_we_give_equal_probabilities(
    command, tmp_path, hub, hub_environment, environment, someone
):
    pytest.importorskip("transformers")
    run = fitted(
        tmp_path, environment, "--model.backbone", "gmlp_ti16_224", "--model.image_size", "64", "--data.crop_pct", "0.9"
    )
    script = Path(__file__).with_name("load_pushed.py")
    environment = {**hub_environment, "HF_TOKEN": someone.token}
    command("push", run, "someone/tiny", "--private", check=0, HF_TOKEN=someone.token)
    image = next((tmp_path / "private_place" / "shapes" / "blue").iterdir())
    done = subprocess.run(
        [sys.executable, str(script), "someone/tiny", str(image)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])
    assert scores["ours"].keys() == {"blue", "green", "red <b>"} and os.environ.get("HF_TOKEN") is None
    # Their pixels are resized by PIL, ours by torch, which rounds a few of them to the next of 256 values.
    for other, most in (("timm on our pixels", 1e-5), ("timm", 1e-3), ("transformers", 1e-3)):
        for label, value in scores["ours"].items():
            assert scores[other][label] == pytest.approx(value, abs=most), (other, scores)
    for label, value in scores["timm"].items():
        assert scores["transformers"][label] == pytest.approx(value, abs=1e-5)
    assert len(set(scores["ours"].values())) > 1
