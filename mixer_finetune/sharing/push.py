"""push: a run's model on the Hugging Face Hub, as one commit that is never doubled and never overwrites another's.

The client leaves a commit alone when its reply is lost, or repeats it; here the parent is pinned, and before anything is tried
again the branch's head is compared with what was sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mixer_finetune.engine.options import as_yaml
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import read_results
from mixer_finetune.files import write_text
from mixer_finetune.hub.read import hub_errors, is_repo_id
from mixer_finetune.hub.retry import ATTEMPTS, FIRST_WAIT, causes, is_transient, reason, retried
from mixer_finetune.runs import read_run_config
from mixer_finetune.sharing.card import model_card, public_name

PICTURES = ("learning_curves.png", "confusion_matrix.png")
# Where a run keeps which commit it pushed last.
RECORD = "push.json"
# What the Hub itself puts into a new repository.
_OF_THE_HUB = frozenset((".gitattributes",))
# A new repository's first commit shows a moment later on a busy Hub; a lost reply's may, too.
SETTLE_SECONDS = 2.0


@dataclass(frozen=True)
class Access:
    """Who pushes where.

    Attributes:
        repo_id: `user/name`.
        token: Of the user; in no message.
    """

    repo_id: str
    token: str = field(repr=False)

    @property
    def api(self) -> Any:
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token)


def check_access(repo_id: str, create_pr: bool = False) -> Access:
    """Make sure, before anything is uploaded or trained, that a push can succeed.

    Args:
        repo_id: `user/name`.
        create_pr: Whether it is only to open a pull request, which may be on another's repository.

    Raises:
        UserError: The name is not a repository's, there is no token, it may not write, or the name belongs to someone else.
    """
    from huggingface_hub import constants, errors, get_token

    _check_name(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise UserError("offline mode is on (HF_HUB_OFFLINE): unset it to push")
    token = get_token()
    if not token:
        raise UserError("pushing needs a token that may write: set HF_TOKEN, or log in with: hf auth login")
    access = Access(repo_id, token)
    with _pushing(repo_id):
        try:
            who = retried(lambda: access.api.whoami(cache=False))
        except errors.HfHubHTTPError as error:
            if error.response.status_code == 401:
                raise UserError(
                    "the Hub does not know the token in HF_TOKEN: make one that may write, at its settings"
                ) from None
            raise
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError("the token may only read: make one that may write, at the Hub's settings, and set HF_TOKEN")
    owner = repo_id.split("/")[0]
    names = [who["name"], *(organisation["name"] for organisation in who.get("orgs", ()))]
    if not create_pr and owner not in names:
        raise UserError(f"the token of {who['name']} can't write to {owner}/: push to {' or '.join(f'{n}/...' for n in names)}")
    return access


def _check_name(repo_id: str) -> None:
    from huggingface_hub import errors
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        raise UserError(f"'{repo_id}' can't be a repository's name: {str(error).splitlines()[0]}") from error
    if not is_repo_id(repo_id):
        raise UserError(f"'{repo_id}' can't be a repository's name: expected user/name")


def contents(run: Path, repo_id: str) -> dict[str, bytes | Path]:
    """What a push sends: path in the repository to content, or the file that holds it.

    Local paths are cut to their last part. Checkpoints stay here, and so do predictions and report, which name and show the
    user's own images.

    Raises:
        UserError: Not a run folder, or the run did not finish.
    """
    config, results = read_run_config(run), read_results(run)
    model = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    for origin in (model["mixer_finetune"]["backbone"], results["backbone"], results["data"]):
        origin["source"] = public_name(origin["source"], origin.get("revision"))
    config["model"]["backbone"], config["data"]["source"] = results["backbone"]["source"], results["data"]["source"]
    results["bad_images"] = len(results["bad_images"])
    config |= {"output_dir": "runs", "push": None}
    config["trainer"] |= {"logger": None, "callbacks": None, "plugins": None}  # whatever these hold is the user's own
    files: dict[str, bytes | Path] = {
        "README.md": model_card(run, repo_id).encode(),
        "config.json": (json.dumps(_scrubbed(model), indent=2) + "\n").encode(),
        "config.yaml": as_yaml(_scrubbed(config)).encode(),
        "model.safetensors": run / "model" / "model.safetensors",
        "results.json": (json.dumps(_scrubbed(results), indent=2, ensure_ascii=False) + "\n").encode(),
    }
    return files | {name: run / name for name in PICTURES if (run / name).is_file()}


def _scrubbed(value: Any) -> Any:
    """The value with paths of this machine cut to their last part."""
    if isinstance(value, dict):
        # Names of classes may look like paths.
        return {key: inner if key in ("label_names", "classes") else _scrubbed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_scrubbed(inner) for inner in value]
    if isinstance(value, str) and re.match(r"(/|~|\.\.?/|[A-Za-z]:\\)", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def push(
    run: Path,
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
        run: Run folder of a finished fit.
        repo_id: `user/name`; created where it does not exist.
        private: Whether a new repository is to be private.
        revision: Branch; created from main where it does not exist.
        create_pr: Open a pull request in place of a commit on the branch.
        force: Put the commit on top of ones that this run did not make.
        dry_run: Only say what would be sent.

    Returns:
        What was done, in a line for the user.

    Raises:
        UserError: The push can't be done; the remote then holds nothing of it, or, where the reply was lost for good, all.
    """
    _check_name(repo_id)
    files = contents(run, repo_id)
    if dry_run:
        sizes = "\n".join(f"  {name:<22} {_size(content):>12,} bytes" for name, content in sorted(files.items()))
        return f"would push to {repo_id} ({revision}):\n{sizes}"
    access = check_access(repo_id, create_pr)
    hashes = {name: _hashes(content) for name, content in files.items()}
    with _pushing(repo_id):
        url = access.api.endpoint + "/" + repo_id
        if not create_pr:
            retried(lambda: access.api.create_repo(repo_id, private=private, exist_ok=True))
            if revision != "main":
                retried(lambda: access.api.create_branch(repo_id, branch=revision, exist_ok=True))
        head, remote = _remote(access, revision)
        if _holds(remote, hashes):
            return f"nothing to push: {url} has this run's files at {head[:12]} already"
        if not (force or create_pr or head == _last_push(run, repo_id, revision) or not remote.keys() - _OF_THE_HUB):
            raise UserError(
                f"{repo_id} ({revision}) holds commits that this run did not make (head {head[:12]}): look at them, then use "
                "--force to put this run's files on top, --create_pr to propose them, or another name"
            )
        commit, place = _commit(access, revision, head, files, hashes, create_pr)
        _, stored = _remote(access, commit)
    if not _holds(stored, hashes):
        raise UserError(f"{repo_id} does not hold what was sent, at {commit[:12]}: look at it, and push again with --force")
    if not create_pr:
        record = {"repo_id": repo_id, "revision": revision, "commit": commit}
        write_text(run / RECORD, json.dumps(record, indent=2) + "\n")
    return f"pushed {len(files)} files as one commit, {commit[:12]}, and compared their sha256: {place or url}"


def _commit(
    access: Access,
    revision: str,
    parent: str,
    files: Mapping[str, bytes | Path],
    hashes: Mapping[str, tuple[str, str]],
    create_pr: bool,
) -> tuple[str, str | None]:
    """Make the commit, at most once: its hash, and the pull request's address."""
    from huggingface_hub import CommitOperationAdd, errors

    known = _pull_requests(access) if create_pr else frozenset()
    for attempt in range(ATTEMPTS):
        operations = [CommitOperationAdd(name, c if isinstance(c, bytes) else str(c)) for name, c in sorted(files.items())]
        try:
            made = access.api.create_commit(
                access.repo_id,
                operations,
                commit_message="Fine-tuned by mixer_finetune",
                revision=revision,
                parent_commit=parent,
                create_pr=create_pr,
            )
            return made.oid, made.pr_url
        except Exception as error:
            if re.search(r"404.*xet-write-token", str(error)):
                raise UserError(
                    f"the Hub ({access.api.endpoint}) has no xet storage: set HF_HUB_DISABLE_XET=1 to push to it; "
                    f"{access.repo_id} is unchanged"
                ) from error
            stale = any(isinstance(c, errors.HfHubHTTPError) and c.response.status_code == 412 for c in causes(error))
            if not stale and not is_transient(error):
                raise
            # The reply may have been lost, not the commit.
            time.sleep(min(FIRST_WAIT * 2**attempt, SETTLE_SECONDS))
            for ref in sorted(_pull_requests(access) - known) if create_pr else [revision]:
                head, remote = _remote(access, ref)
                if head != parent and _holds(remote, hashes):
                    return head, None
                if head != parent and not create_pr:
                    raise UserError(
                        f"{access.repo_id} ({revision}) has moved on to {head[:12]} during the push, which changed nothing: "
                        "look at that commit, and push again with --force"
                    ) from error
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"the Hub does not take the commit ({reason(error)}); {access.repo_id} is unchanged: push again later"
                ) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _remote(access: Access, revision: str) -> tuple[str, dict[str, tuple[str | None, str | None]]]:
    """The commit that a revision stands for, and its files' (sha256 where it is large, git's hash)."""
    info = retried(lambda: access.api.model_info(access.repo_id, revision=revision, files_metadata=True))
    return info.sha, {s.rfilename: (s.lfs.sha256 if s.lfs else None, s.blob_id) for s in info.siblings}


def _pull_requests(access: Access) -> frozenset[str]:
    refs = retried(lambda: access.api.list_repo_refs(access.repo_id, include_pull_requests=True))
    return frozenset(ref.ref for ref in refs.pull_requests or ())


def _holds(remote: Mapping[str, tuple[str | None, str | None]], hashes: Mapping[str, tuple[str, str]]) -> bool:
    """Whether the remote has all the files, with the content that has those hashes."""

    def same(name: str) -> bool:
        (large, blob), (sha256, git) = remote.get(name, (None, None)), hashes[name]
        return large == sha256 if large else blob == git

    return all(same(name) for name in hashes)


def _hashes(content: bytes | Path) -> tuple[str, str]:
    """The sha256 and git's hash of a blob."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    git.update(data)
    return hashlib.sha256(data).hexdigest(), git.hexdigest()


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _last_push(run: Path, repo_id: str, revision: str) -> str | None:
    """The commit that this run made last, there."""
    try:
        record = yaml.safe_load((run / RECORD).read_text(encoding="utf-8"))
        return record["commit"] if (record["repo_id"], record["revision"]) == (repo_id, revision) else None
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None


def _pushing(repo_id: str) -> Any:
    return hub_errors(repo_id, "model", "the name to push to", writing=True)
