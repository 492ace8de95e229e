"""Reading from the loopback Hub: repositories, revisions, trees and files.

Names, status codes and headers are the Hub's, as far as huggingface_hub 2 and datasets 5 use them, without xet. In the
routes a repository is `T/R` with T `models` or `datasets` and R `user/name`; a revision is one quoted part of the path.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from hub.protocol import Refusal, Request, Response, front_matter, json_response, ranged
from hub.repositories import Commit, Repository, User, blob_id, is_lfs, lfs_pointer, sha256, tree_entries

REPO = r"/api/(models|datasets)/([^/]+/[^/]+)"
FILES = r"/(?:(datasets)/)?([^/]+/[^/]+)"


class ReadingApi:
    """Answers requests from the repositories in memory.

    Attributes:
        endpoint: `http://127.0.0.1:port`.
        storage: The same of the server that LFS files come from.
        repositories: By kind and id.
        users: By token.
        objects: LFS files that were uploaded, by sha256.
    """

    def __init__(self) -> None:
        self.endpoint = self.storage = ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.users: dict[str, User] = {}
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._routes = [(method, re.compile(pattern), handler) for method, pattern, handler in self.routes()]

    def routes(self) -> list[tuple[str, str, Callable[..., Response]]]:
        """Method, path and handler of each call; the groups of the path are the handler's arguments."""
        return [
            ("GET", REPO + r"(?:/revision/([^/]+))?", self._info),
            ("GET", REPO + r"/refs", self._refs),
            ("GET", REPO + r"/tree/([^/]+)(?:/(.+))?", self._tree),
            ("GET", REPO + r"/commits/([^/]+)", self._commits),
            ("POST", REPO + r"/paths-info/([^/]+)", self._paths_info),
            ("GET", FILES + r"/resolve/([^/]+)/(.+)", self._resolve),
            ("GET", r"/objects/(\w{64})/.+", self._object),
        ]

    def answer(self, request: Request) -> Response:
        """The reply to a request; for HEAD that of GET, whose body the server leaves out."""
        method = "GET" if request.method == "HEAD" else request.method
        try:
            for route, pattern, handler in self._routes:
                if route == method and (match := pattern.fullmatch(request.path)):
                    with self._lock:
                        return handler(request, *(part and unquote(part) for part in match.groups()))
            raise Refusal(404, f"no route {request.method} {request.path}")
        except Refusal as refusal:
            return refusal.response

    # Who may do what

    def _user(self, request: Request) -> User | None:
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def _repository(self, request: Request, kind: str | None, repo_id: str) -> Repository:
        user = self._user(request)
        repository = self.repositories.get(("dataset" if kind == "datasets" else "model", repo_id))
        if repository is None or not repository.is_visible_to(user):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

    def _at(self, repository: Repository, revision: str | None) -> Commit:
        commit = repository.find(revision or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Reading

    def _info(self, request: Request, kind: str, repo_id: str, revision: str | None) -> Response:
        repository = self._repository(request, kind, repo_id)
        commit = self._at(repository, revision)
        siblings = []
        for path, content in commit.files.items():
            sibling: dict[str, Any] = {"rfilename": path}
            if request.query.get("blobs"):
                sibling |= {"size": len(content), "blobId": blob_id(path, content)}
                if is_lfs(path, len(content)):
                    sibling["lfs"] = {
                        "sha256": sha256(content),
                        "size": len(content),
                        "pointerSize": len(lfs_pointer(content)),
                    }
            siblings.append(sibling)
        card = front_matter(commit.files.get("README.md", b"").decode())
        return json_response(
            {
                "id": repository.id, "sha": commit.id, "siblings": siblings,
                "cardData": card, "tags": card.get("tags", []),
                "private": repository.private, "gated": "manual" if repository.gated else False,
            }
        )  # fmt: skip

    def _refs(self, request: Request, kind: str, repo_id: str) -> Response:
        repository = self._repository(request, kind, repo_id)

        def refs(prefix: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in names.items()]

        return json_response(
            {
                "branches": refs("refs/heads/", repository.branches),
                "tags": refs("refs/tags/", repository.tags),
                "pullRequests": refs("", repository.pull_requests),
                "converts": [],
            }
        )

    def _tree(self, request: Request, kind: str, repo_id: str, revision: str, folder: str | None) -> Response:
        commit = self._at(self._repository(request, kind, repo_id), revision)
        entries = tree_entries(commit, folder or "", request.query.get("recursive", "").lower() == "true")
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return json_response(entries)

    def _commits(self, request: Request, kind: str, repo_id: str, revision: str) -> Response:
        repository = self._repository(request, kind, repo_id)
        history, commit = [], repository.find(self._at(repository, revision).id)
        while commit is not None:
            history.append(commit)
            commit = repository.find(commit.parent) if commit.parent else None
        user, date = {"user": repository.owner}, "2026-01-01T00:00:00.000Z"
        return json_response(
            [{"id": c.id, "title": c.message, "message": "", "authors": [user], "date": date} for c in history]
        )

    def _paths_info(self, request: Request, kind: str, repo_id: str, revision: str) -> Response:
        commit = self._at(self._repository(request, kind, repo_id), revision)
        paths = parse_qs(request.body.decode()).get("paths", [])
        entries = {entry["path"]: entry for entry in tree_entries(commit, "", recursive=True)}
        return json_response([entries[path] for path in paths if path in entries])

    def _resolve(self, request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Response:
        repository = self._repository(request, kind, repo_id)
        commit = self._at(repository, revision)
        headers = {"X-Repo-Commit": commit.id}
        if not repository.is_open_to(self._user(request)):
            raise Refusal(
                403 if self._user(request) else 401, f"Access to {repo_id} is restricted", "GatedRepo", headers
            )
        content = commit.files.get(path)
        if content is None:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound", headers)
        if not is_lfs(path, len(content)):
            return ranged(request, content, {**headers, "ETag": f'"{blob_id(path, content)}"'})
        oid = sha256(content)
        self.objects[oid] = content
        linked = {
            "X-Linked-Etag": f'"{oid}"',
            "X-Linked-Size": str(len(content)),
            "ETag": f'"{blob_id(path, content)}"',
        }
        # The name is there for those who read the list of requests; the Hub has it in the query.
        location = f"{self.storage}/objects/{oid}/{quote(path)}"
        return Response(302, f"Found. Redirecting to {location}".encode(), {**headers, **linked, "Location": location})

    def _object(self, request: Request, oid: str) -> Response:
        if oid not in self.objects:
            raise Refusal(404, "no such object")
        return ranged(request, self.objects[oid], {"ETag": f'"{oid}"'})
