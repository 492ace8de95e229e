"""What the loopback Hub stores: users with tokens, and repositories as chains of whole commits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath

# The Hub keeps these, and whatever is larger, out of git.
LFS_SUFFIXES = {".safetensors", ".parquet", ".bin", ".ckpt", ".npz"}
LFS_THRESHOLD = 1 << 20
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub stores a file of that name and size as LFS; empty files never are."""
    return size > 0 and (PurePosixPath(path).suffix in LFS_SUFFIXES or size > LFS_THRESHOLD)


def git_oid(content: bytes) -> str:
    """The id that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(content: bytes) -> bytes:
    """What git holds in the place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()


def blob_id(path: str, content: bytes) -> str:
    """The id of the git blob that stands for a file: of its pointer where it is LFS."""
    return git_oid(lfs_pointer(content) if is_lfs(path, len(content)) else content)


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and whether the token may "read" or also "write"."""

    name: str
    token: str
    role: str


@dataclass(frozen=True)
class Commit:
    """A state of a repository: all its files."""

    id: str
    parent: str | None
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A model or data set repository.

    Attributes:
        kind: "model" or "dataset".
        id: `user/name`.
        private: Only the owner sees it.
        gated: Everybody sees it; the owner and those in `granted` may download.
        granted: Names of users who were given access.
        commits: Oldest first, of all branches.
        branches: Commit id of each, as `main`.
        tags: Commit id of each.
        pull_requests: Commit id of each, as `refs/pr/1`.
    """

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A new repository of the Hub begins with a commit that holds this file alone.
        self.commit({".gitattributes": GITATTRIBUTES}, message="initial commit")

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        """The newest commit of the branch main."""
        return self.at("main")

    @property
    def url_path(self) -> str:
        return f"datasets/{self.id}" if self.kind == "dataset" else self.id

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, a pull request's ref or a commit id stands for."""
        names = {**self.tags, **self.branches, **self.pull_requests}
        wanted = names.get(revision.removeprefix("refs/heads/"), revision)
        return next((commit for commit in self.commits if commit.id == wanted), None)

    def at(self, revision: str) -> Commit:
        """As `find`, of a revision that is known to exist."""
        commit = self.find(revision)
        assert commit is not None, f"{self.id} has no revision {revision}"
        return commit

    def commit(
        self, files: dict[str, bytes], *, delete: tuple[str, ...] = (), message: str = "seed", revision: str = "main"
    ) -> str:
        """Add, replace and delete files on a branch or a pull request, in one commit; returns its id.

        Args:
            files: Content of those that are new or changed.
            delete: Paths that go; one that ends in "/" stands for a folder.
            message: The commit's.
            revision: A branch, or a pull request's ref.
        """
        parent = self.find(revision)
        kept = {
            path: content
            for path, content in (parent.files if parent else {}).items()
            if not any(path == gone or gone.endswith("/") and path.startswith(gone) for gone in delete)
        }
        state = {**kept, **files}
        named = "\0".join([str(len(self.commits)), self.id, message, *(f"{p} {git_oid(c)}" for p, c in state.items())])
        commit = Commit(hashlib.sha1(named.encode()).hexdigest(), parent.id if parent else None, message, state)
        self.commits.append(commit)
        (self.pull_requests if revision.startswith("refs/pr/") else self.branches)[revision] = commit.id
        return commit.id

    def open_pull_request(
        self, base: str, files: dict[str, bytes], delete: tuple[str, ...], message: str
    ) -> tuple[int, str]:
        """A commit on top of `base`, under a new `refs/pr/N`; returns N and the commit's id."""
        number = len(self.pull_requests) + 1
        self.pull_requests[f"refs/pr/{number}"] = self.at(base).id
        return number, self.commit(files, delete=delete, message=message, revision=f"refs/pr/{number}")

    def is_visible_to(self, user: User | None) -> bool:
        return not self.private or (user is not None and user.name == self.owner)

    def is_open_to(self, user: User | None) -> bool:
        """Whether the user may download its files."""
        if not self.is_visible_to(user):
            return False
        return not self.gated or (user is not None and user.name in {self.owner, *self.granted})


def file_entry(path: str, content: bytes) -> dict[str, object]:
    """A file as the Hub's tree lists it."""
    entry: dict[str, object] = {"type": "file", "path": path, "oid": blob_id(path, content), "size": len(content)}
    if is_lfs(path, len(content)):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": len(lfs_pointer(content))}
    return entry


def tree_entries(commit: Commit, folder: str, recursive: bool) -> list[dict[str, object]]:
    """Files and folders below a folder ("" for the root): all of them, or the next level only."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, object]] = {}
    for path, content in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = PurePosixPath(path[len(prefix) :]).parts
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            entries[name] = {"type": "directory", "path": name, "oid": git_oid(name.encode()), "size": 0}
        if recursive or len(parts) == 1:
            entries[path] = file_entry(path, content)
    return list(entries.values())
