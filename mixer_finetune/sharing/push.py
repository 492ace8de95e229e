"""push: a run's model on the Hugging Face Hub, as one commit; `hub.commit` says how it is made only once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mixer_finetune.backbones.folder import OWN_KEY
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import Results
from mixer_finetune.hub.commit import (
    BranchMovedError,
    Snapshot,
    check_access,
    check_name,
    commit_files,
    create_branch,
    hashes_of,
    snapshot,
)
from mixer_finetune.integrity import as_written
from mixer_finetune.runs import RunFolder
from mixer_finetune.sharing.card import model_card, partial_note, public_name

# A local path in a text: /a, ~/a, ~me/a, ./a, ../a, file:///a, C:\a, \\server\a. No slash of https://a/b or of
# val/loss.
_LOCAL_PATH = re.compile(
    r"""(?:file:/*|(?<![\w./\\~])(?:~[\w.-]*[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|/(?=[^\s/])|(?<!:)/{2,}))"""
    r"""[^'",;|<>()\[\]{}\n]*"""
)
# A word with a slash in it, which is a relative path if there is something at that place.
_SLASHED = re.compile(r"""[^\s'",;|<>()\[\]{}=:]+[/\\][^\s'",;|<>()\[\]{}=:]+""")
# Options of the trainer whose values are objects of the user's own, which may hold addresses and keys.
_PRIVATE = dict.fromkeys(("logger", "callbacks", "plugins"))


def contents(run: RunFolder, repo_id: str) -> dict[str, bytes | Path]:
    """What a push sends: path in the repository to content, or the file that holds it.

    Local paths are cut to their last part. Checkpoints stay here, and so do predictions and report, which name and show
    the user's own images.

    Raises:
        UserError: The run did not finish.
    """
    config, results = run.read_config(), asdict(Results.read(run))
    model = json.loads((run.model / "config.json").read_text(encoding="utf-8"))
    with as_written(run.model / "config.json"):
        for origin in (model[OWN_KEY]["backbone"], results["backbone"], results["data"]):
            if origin.get("source"):
                origin["source"] = public_name(origin["source"], origin.get("revision"))
    with as_written(run.config_file):
        for group, option, origin in (("model", "backbone", results["backbone"]), ("data", "source", results["data"])):
            options = config.get(group) or {}
            options = options.get("init_args", options)
            if option in options:
                options[option] = origin.get("source")
        config |= {"output_dir": "runs", "push": None, "trainer": {**(config.get("trainer") or {}), **_PRIVATE}}
    results["bad_images"] = len(results["bad_images"])
    del results["files"]  # the hashes of files that lie here, some of which are sent otherwise or not at all
    # A relative path looks like a Hub id or a metric's name: it is one if it leads somewhere from here or above the
    # run.
    places = [Path.cwd(), *run.path.resolve().parents]

    def public(value: Any) -> Any:
        return without_local_paths(value, lambda text: any(os.path.exists(place / text) for place in places))

    measured = json.dumps(public(results), indent=2, ensure_ascii=False) + "\n"
    files: dict[str, bytes | Path] = {
        "README.md": model_card(run, repo_id).encode("utf-8", "replace"),
        "config.json": (json.dumps(public(model), indent=2) + "\n").encode(),
        "config.yaml": yaml.safe_dump(public(config), sort_keys=False, allow_unicode=True).encode(),
        "model.safetensors": run.model / "model.safetensors",
        "results.json": measured.encode("utf-8", "backslashreplace"),  # of names that are no text
    }
    if (trust := run.read_json(run.calibration_file)) is not None:
        files[run.calibration_file.name] = (json.dumps(public(trust), ensure_ascii=False) + "\n").encode()
    pictures = (run.curves_picture, run.confusion_picture)
    return files | {picture.name: picture for picture in pictures if picture.is_file()}


def without_local_paths(value: Any, exists: Callable[[str], bool]) -> Any:
    """A configuration with every local path cut to its last part, wherever it stands: in lists, in keys, inside a text.

    Names of classes stay as they are (`label_names`, `classes`), since they may look like paths.

    Args:
        value: Made of dicts, lists and plain values.
        exists: Whether a relative path leads somewhere on this machine.
    """
    if isinstance(value, dict):
        return {
            without_local_paths(key, exists): inner
            if key in ("label_names", "classes") and isinstance(inner, list)
            else without_local_paths(inner, exists)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_local_paths(inner, exists) for inner in value]
    if not isinstance(value, str):
        return value
    if exists(value):
        return _last_part(value)
    text = _LOCAL_PATH.sub(lambda match: _last_part(match[0]), value)
    return _SLASHED.sub(lambda match: _last_part(match[0]) if exists(match[0]) else match[0], text)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def push(
    run: RunFolder,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = "main",
    create_pr: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> str:
    """Push a run's model.

    Args:
        run: Of a finished fit.
        repo_id: `user/name`; created where it does not exist.
        private: Whether a new repository is to be private.
        revision: Branch; created from main where it does not exist.
        create_pr: Open a pull request in place of a commit on the branch.
        force: Put the commit on top of ones that this run did not make, and push results of a part of the split.
        dry_run: Only say what would be sent.

    Returns:
        What was done, in a line for the user.

    Raises:
        UserError: The push can't be done; the remote then holds nothing of it, or, where the reply was lost for good,
            all.
    """
    check_name(repo_id)
    files = contents(run, repo_id)
    if dry_run:
        sizes = "\n".join(f"  {name:<22} {_size(content):>12,} bytes" for name, content in sorted(files.items()))
        return f"would push to {repo_id} ({revision}):\n{sizes}"
    if (note := partial_note(Results.read(run))) and not force:
        raise UserError(f"the results of {run} are {note}", advice="evaluate all of it, or push them with {force}")
    access = check_access(repo_id, create_pr)
    with access.errors():
        if not create_pr:
            create_branch(access, revision, private=private)
        before, hashes = snapshot(access, revision), hashes_of(files)
        if before.holds(hashes):
            return f"nothing to push: {access.url} has this run's files at {before.commit[:12]} already"
        if not (force or create_pr or before.is_empty or _is_our_own(before, run, repo_id, revision)):
            raise UserError(
                f"{repo_id} ({revision}) holds commits that this run did not make (head {before.commit[:12]})",
                advice="look at them, then use {force} to put this run's files on top, {create_pr} to propose them, or "
                "another name",
            )
        try:
            commit = commit_files(
                access,
                files,
                hashes,
                before.commit,
                message="Fine-tuned by mixer_finetune",
                revision=revision,
                create_pr=create_pr,
            )
        except BranchMovedError as error:
            raise UserError(
                f"{repo_id} ({revision}) has moved on to {error.head[:12]} during the push, which changed nothing",
                advice="look at that commit, and push again with {force}",
            ) from error
    if not create_pr:  # whatever the check says: the commit is made, and a second push knows it for its own
        run.write_json(run.push_file, {"repo_id": repo_id, "revision": revision, "commit": commit.id})
    if not commit.is_complete:
        if commit.unchecked:
            raise UserError(
                f"the commit {commit.id[:12]} is made in {repo_id}, but could not be checked ({commit.unchecked}): "
                "push again to have it compared"
            )
        raise UserError(
            f"{repo_id} does not hold what was sent, at {commit.id[:12]}",
            advice="look at it, and push again",
        )
    place = commit.pull_request or access.url
    return f"pushed {len(files)} files as one commit, {commit.id[:12]}, and compared their sha256: {place}"


def _is_our_own(head: Snapshot, run: RunFolder, repo_id: str, revision: str) -> bool:
    """Whether the run itself made that commit, as its last push."""
    record, made = run.read_json(run.push_file) or {}, {"repo_id": repo_id, "revision": revision, "commit": head.commit}
    return record.items() >= made.items()


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
