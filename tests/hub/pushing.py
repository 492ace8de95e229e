"""Pushing to the loopback Hub: accounts, repositories, uploads of LFS files, commits, pull requests, branches, tags."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import yaml

from hub.protocol import Refusal, Request, Response, front_matter, json_response
from hub.reading import FILES, REPO, ReadingApi
from hub.repositories import Repository, User, blob_id, is_lfs, sha256


class HubApi(ReadingApi):
    """All calls: what `ReadingApi` answers, and those that write."""

    def routes(self) -> list[tuple[str, str, Callable[..., Response]]]:
        return [
            *super().routes(),
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/repos/create", self._create_repo),
            ("POST", r"/api/validate-yaml", self._validate_yaml),
            ("POST", REPO + r"/preupload/([^/]+)", self._preupload),
            ("POST", REPO + r"/commit/([^/]+)", self._commit),
            ("POST", REPO + r"/branch/([^/]+)", self._create_branch),
            ("POST", REPO + r"/tag/([^/]+)", self._create_tag),
            ("POST", FILES + r"\.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", r"/objects/(\w{64})", self._upload_object),
            ("POST", r"/objects/(\w{64})/verify", self._verify_object),
        ]

    # Who may do what

    def _writable(self, request: Request, kind: str | None, repo_id: str) -> Repository:
        repository = self._repository(request, kind, repo_id)
        self._require_writer(request, repository.owner)
        return repository

    def _require_writer(self, request: Request, owner: str) -> User:
        user = self._user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user.role != "write" or user.name != owner:
            raise Refusal(403, f"You don't have the rights to write in the namespace {owner}")
        return user

    def _require_contributor(self, request: Request, repository: Repository) -> None:
        """Whoever has a token that writes may open a pull request; the rest is the owner's."""
        user = self._user(request)
        self._require_writer(request, user.name if user and request.query.get("create_pr") else repository.owner)

    # Accounts and repositories

    def _whoami(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": user.role}
        return json_response({"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": token}})

    def _create_repo(self, request: Request) -> Response:
        wanted = request.json()
        user = self._user(request)
        owner = wanted.get("organization") or (user.name if user else "")
        self._require_writer(request, owner)
        repository = Repository(wanted.get("type") or "model", f"{owner}/{wanted['name']}")
        url = f"{self.endpoint}/{repository.url_path}"
        if (repository.kind, repository.id) in self.repositories:
            return json_response({"error": "You already created this repo", "url": url}, 409)
        repository.private = wanted.get("visibility") == "private"
        self.repositories[repository.kind, repository.id] = repository
        return json_response({"url": url, "id": repository.id})

    def _validate_yaml(self, request: Request) -> Response:
        try:
            front_matter(request.json()["content"])
        except yaml.YAMLError as error:
            return json_response({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return json_response({"errors": [], "warnings": []})

    # Files and commits

    def _preupload(self, request: Request, kind: str, repo_id: str, revision: str) -> Response:
        repository = self._repository(request, kind, repo_id)
        self._require_contributor(request, repository)
        commit = self._at(repository, revision)
        files = []
        for file in request.json()["files"]:
            path, old = file["path"], commit.files.get(file["path"])
            # The client leaves a file out of the commit when this is the id of what it has itself.
            oid = None if old is None else sha256(old) if is_lfs(path, len(old)) else blob_id(path, old)
            mode = "lfs" if is_lfs(path, file["size"]) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return json_response({"files": files})

    def _lfs_batch(self, request: Request, kind: str | None, repo_id: str) -> Response:
        self._repository(request, kind, repo_id)
        user = self._user(request)  # an upload shows nowhere before its commit, so any user's token that writes will do
        self._require_writer(request, user.name if user else "")
        objects = []
        for wanted in request.json()["objects"]:
            oid = wanted["oid"]
            entry: dict[str, Any] = {"oid": oid, "size": wanted["size"]}
            if oid not in self.objects:
                upload, verify = f"{self.storage}/objects/{oid}", f"{self.endpoint}/objects/{oid}/verify"
                entry["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify}}
            objects.append(entry)
        return json_response({"transfer": "basic", "objects": objects})

    def _upload_object(self, request: Request, oid: str) -> Response:
        if sha256(request.body) != oid:
            raise Refusal(400, "the content is not what its sha256 says")
        self.objects[oid] = request.body
        return Response(200)

    def _verify_object(self, request: Request, oid: str) -> Response:
        if len(self.objects.get(oid, b"")) != request.json()["size"]:
            raise Refusal(404, "the object was not uploaded")
        return json_response({})

    def _commit(self, request: Request, kind: str, repo_id: str, revision: str) -> Response:
        repository = self._repository(request, kind, repo_id)
        self._require_contributor(request, repository)
        base = self._at(repository, revision)
        header, files, deleted = self._operations(request.body)
        if header.get("parentCommit") not in (None, base.id):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        url = f"{self.endpoint}/{repository.url_path}"
        reply: dict[str, Any] = {"success": True}
        if request.query.get("create_pr"):
            number, commit_id = repository.open_pull_request(revision, files, deleted, header["summary"])
            reply["pullRequestUrl"] = f"{url}/discussions/{number}"
        else:
            if revision not in {**repository.branches, **repository.pull_requests}:
                raise Refusal(400, f"{revision} is not a branch")
            commit_id = repository.commit(files, delete=deleted, message=header["summary"], revision=revision)
        return json_response({**reply, "commitOid": commit_id, "commitUrl": f"{url}/commit/{commit_id}"})

    def _operations(self, body: bytes) -> tuple[dict[str, Any], dict[str, bytes], tuple[str, ...]]:
        """The header, the files and the deleted paths of a commit's lines."""
        header: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        deleted: list[str] = []
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refusal(400, f"the LFS object of {value['path']} was not uploaded")
                files[value["path"]] = self.objects[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"].rstrip("/") + ("/" if key == "deletedFolder" else ""))
            else:
                raise Refusal(400, f"unknown operation {key}")
        return header, files, tuple(deleted)

    def _create_branch(self, request: Request, kind: str, repo_id: str, branch: str) -> Response:
        repository = self._writable(request, kind, repo_id)
        if branch in repository.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
        wanted = request.json() if request.body else {}
        repository.branches[branch] = self._at(repository, wanted.get("startingPoint")).id
        return json_response({})

    def _create_tag(self, request: Request, kind: str, repo_id: str, revision: str) -> Response:
        repository = self._writable(request, kind, repo_id)
        tag = request.json()["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Tag reference exists already: refs/tags/{tag}")
        repository.tags[tag] = self._at(repository, revision).id
        return json_response({})
