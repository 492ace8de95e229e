"""Writing to the Hugging Face Hub: files as one commit, which is made once and compared with what was sent.

When the reply to a commit is lost, the client either gives up or commits again. Here the parent is pinned, and before a
commit is tried again the head of the branch is compared with what was sent: so no commit is doubled, and none of others
is overwritten.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mixer_finetune.errors import UserError
from mixer_finetune.hub.read import hub_errors, is_repo_id
from mixer_finetune.hub.retry import (
    ATTEMPTS,
    FIRST_WAIT,
    LONGEST_WAIT,
    asked_wait,
    causes,
    is_transient,
    reason,
    retried,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Path in the repository to content, or to the local file that holds it.
Files = Mapping[str, bytes | Path]
# On a busy Hub a commit may show only a moment after it was made.
SETTLE_SECONDS = 2.0
# What the Hub itself puts into a new repository.
OF_THE_HUB = frozenset((".gitattributes",))


@dataclass(frozen=True)
class Access:
    """Who writes where.

    Attributes:
        repo_id: `user/name` of a model repository.
        token: Of the user; in no message.
    """

    repo_id: str
    token: str = field(repr=False)

    @property
    def api(self) -> HfApi:
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token)

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.api.endpoint}/{self.repo_id}"

    def errors(self) -> AbstractContextManager[None]:
        """Write in this block: failures are one line, as `hub_errors` says."""
        return hub_errors(self.repo_id, "model", "repo_id", writing=True)


class Hashes(NamedTuple):
    """What the Hub knows a file's content by.

    Attributes:
        sha256: Of the content; None where the Hub states only git's.
        git: git's hash of it, or of the pointer that stands for a large file.
    """

    sha256: str | None
    git: str | None


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit.

    Attributes:
        commit: Its hash.
        files: Hashes of the files, by path.
    """

    commit: str
    files: Mapping[str, Hashes]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but what the Hub itself put there."""
        return not self.files.keys() - OF_THE_HUB

    def holds(self, hashes: Mapping[str, Hashes]) -> bool:
        """Whether it has all the files, with the content that has these hashes."""

        def same(name: str) -> bool:
            stored, sent = self.files.get(name, Hashes(None, None)), hashes[name]
            return stored.sha256 == sent.sha256 if stored.sha256 else stored.git == sent.git

        return all(map(same, hashes))


@dataclass(frozen=True)
class Commit:
    """A commit that was made.

    Attributes:
        id: Its hash.
        pull_request: Address of the pull request, where it is one and the reply said so.
        is_complete: Whether the Hub is known to hold all that was sent.
        unchecked: Why that could not be checked; None where it was.
    """

    id: str
    pull_request: str | None
    is_complete: bool
    unchecked: str | None = None


class BranchMovedError(Exception):
    """The branch got another commit before ours, which was not made.

    Attributes:
        head: The commit that it got.
    """

    def __init__(self, head: str) -> None:
        super().__init__(f"the branch has moved on to {head}")
        self.head = head


def check_name(repo_id: str) -> None:
    """Refuse what can't be `user/name` of a repository.

    Raises:
        UserError: It can't.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        raise UserError(f"'{repo_id}' can't be a repository's name: {str(error).splitlines()[0]}") from error
    if not is_repo_id(repo_id):
        raise UserError(f"'{repo_id}' can't be a repository's name: expected user/name")


def check_access(repo_id: str, create_pr: bool = False) -> Access:
    """Make sure, before anything is uploaded or trained, that a push can succeed.

    Args:
        repo_id: `user/name`.
        create_pr: Whether it is only to open a pull request, which may be on another's repository.

    Raises:
        UserError: The name is not a repository's, there is no token, it may not write, or the name belongs to someone
            else.
    """
    from huggingface_hub import constants, errors, get_token

    check_name(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise UserError("offline mode is on (HF_HUB_OFFLINE): unset it to push")
    token = get_token()
    if not token:
        raise UserError("pushing needs a token that may write: set HF_TOKEN, or log in with: hf auth login")
    access = Access(repo_id, token)
    with access.errors():
        try:
            who = retried(lambda: access.api.whoami(cache=False))
        except errors.HfHubHTTPError as error:
            if error.response.status_code == 401:
                raise UserError(
                    "the Hub does not know the token in HF_TOKEN: make one that may write, at its settings"
                ) from None
            raise
    if not isinstance(who, dict) or not isinstance(who.get("name"), str):
        raise UserError(f"the Hub ({access.api.endpoint}) does not say whose the token is: check HF_ENDPOINT")
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError("the token may only read: make one that may write, at the Hub's settings, and set HF_TOKEN")
    owner = repo_id.split("/")[0]
    names = [who["name"], *(organisation["name"] for organisation in who.get("orgs", ()))]
    if not create_pr and owner not in names:
        raise UserError(
            f"the token of {who['name']} can't write to {owner}/: push to {' or '.join(f'{n}/...' for n in names)}"
        )
    return access


def create_branch(access: Access, revision: str, *, private: bool) -> None:
    """Create the repository and the branch where they do not exist.

    Args:
        access: From `check_access`.
        revision: Branch; a new one starts at main.
        private: Whether a new repository is to be private.
    """
    retried(lambda: access.api.create_repo(access.repo_id, private=private, exist_ok=True))
    if revision != "main":
        retried(lambda: access.api.create_branch(access.repo_id, branch=revision, exist_ok=True))


def snapshot(access: Access, revision: str) -> Snapshot:
    """The commit that a revision stands for, and its files."""
    info = retried(lambda: access.api.model_info(access.repo_id, revision=revision, files_metadata=True))
    if info.sha is None or info.siblings is None:
        raise UserError(f"the Hub ({access.api.endpoint}) does not list the files of {access.repo_id}: try again later")
    files = {file.rfilename: Hashes(file.lfs.sha256 if file.lfs else None, file.blob_id) for file in info.siblings}
    return Snapshot(info.sha, files)


def hashes_of(files: Files) -> dict[str, Hashes]:
    """The hashes that the Hub will know the files by."""

    def hashes(content: bytes | Path) -> Hashes:
        data = content if isinstance(content, bytes) else content.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
        git.update(data)
        return Hashes(hashlib.sha256(data).hexdigest(), git.hexdigest())

    return {name: hashes(content) for name, content in files.items()}


def commit_files(
    access: Access,
    files: Files,
    hashes: Mapping[str, Hashes],
    parent: str,
    *,
    message: str,
    revision: str = "main",
    create_pr: bool = False,
) -> Commit:
    """Add or replace files in one commit, made at most once.

    Args:
        access: From `check_access`.
        files: What to send.
        hashes: Of the files, from `hashes_of`.
        parent: The head that the branch is known to have.
        message: Of the commit.
        revision: Branch.
        create_pr: Open a pull request in place of a commit on the branch.

    Raises:
        BranchMovedError: The branch has another head.
        UserError: The Hub does not take the commit; the repository is unchanged.
    """
    from huggingface_hub import CommitOperationAdd, errors

    known = _pull_requests(access) if create_pr else frozenset()
    for attempt in range(ATTEMPTS):
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in sorted(files.items())
        ]
        try:
            made = access.api.create_commit(
                access.repo_id,
                operations,
                commit_message=message,
                revision=revision,
                parent_commit=parent,
                create_pr=create_pr,
            )
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
            asked = asked_wait(error)
            time.sleep(max(min(FIRST_WAIT * 2**attempt, SETTLE_SECONDS), asked if asked <= LONGEST_WAIT else 0))
            for ref in sorted(_pull_requests(access) - known) if create_pr else [revision]:
                found = snapshot(access, ref)
                if found.commit != parent and found.holds(hashes):
                    return Commit(found.commit, None, is_complete=True)
                if found.commit != parent and not create_pr:
                    raise BranchMovedError(found.commit) from error
            if attempt == ATTEMPTS - 1 or asked > LONGEST_WAIT:
                raise UserError(
                    f"the Hub does not take the commit ({reason(error)}); {access.repo_id} is unchanged: push again "
                    "later"
                ) from error
        else:
            try:
                return Commit(made.oid, made.pr_url, snapshot(access, made.oid).holds(hashes))
            except Exception as error:  # which does not unmake the commit
                return Commit(made.oid, made.pr_url, is_complete=False, unchecked=reason(error))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _pull_requests(access: Access) -> frozenset[str]:
    refs = retried(lambda: access.api.list_repo_refs(access.repo_id, include_pull_requests=True))
    return frozenset(ref.ref for ref in refs.pull_requests or ())
