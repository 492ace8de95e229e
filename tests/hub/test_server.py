"""The loopback Hub answers the real client as the Hub does, pushes among it."""

import os

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

from hub import faults


@pytest.fixture
def someone(hub):
    return hub.add_user("someone")


@pytest.fixture
def api(hub, someone, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=hub.endpoint, token=someone.token)


def additions(**files):
    return [CommitOperationAdd(path.replace("__", "/").replace("_", "."), content) for path, content in files.items()]


def test_a_push_is_stored_as_one_commit_and_reads_back(api, hub, tmp_path):
    assert api.whoami()["name"] == "someone"
    url = api.create_repo("someone/new", private=True)
    assert api.create_repo("someone/new", exist_ok=True) == url == f"{hub.endpoint}/someone/new"
    first = api.model_info("someone/new").sha
    weights = os.urandom(100_000)
    files = additions(README_md=b"---\nlicense: mit\n---\n", model_safetensors=weights, a__b_txt=b"text")
    pushed = api.create_commit("someone/new", files, commit_message="all", parent_commit=first)

    repository = hub.repositories["model", "someone/new"]
    assert repository.private and repository.head.id == pushed.oid and repository.head.parent == first
    assert set(repository.head.files) == {".gitattributes", "README.md", "model.safetensors", "a/b.txt"}
    info = api.model_info("someone/new", files_metadata=True)
    assert info.sha == pushed.oid and info.card_data.license == "mit"
    assert {s.rfilename: s.lfs is not None for s in info.siblings}["model.safetensors"]
    assert [file.path for file in api.list_repo_tree("someone/new", "a")] == ["a/b.txt"]
    path = api.hf_hub_download("someone/new", "model.safetensors", cache_dir=tmp_path)
    assert open(path, "rb").read() == weights
    assert all(not request.authorized for request in hub.requested("GET", "^/objects/"))
    assert [commit.title for commit in api.list_repo_commits("someone/new")] == ["all", "initial commit"]


def test_a_stale_parent_is_refused_and_a_pull_request_leaves_main_alone(api, hub):
    repository = hub.add_repository("model", "someone/nano", {"config.json": b"{}", "old/a.txt": b"a"})
    head = repository.head.id
    with pytest.raises(errors.HfHubHTTPError) as refused:
        api.create_commit("someone/nano", additions(x_txt=b"x"), commit_message="stale", parent_commit="0" * 40)
    assert refused.value.response.status_code == 412 and repository.head.id == head
    operations = [*additions(x_txt=b"x"), CommitOperationDelete("old/", is_folder=True)]
    request = api.create_commit("someone/nano", operations, commit_message="proposed", create_pr=True)
    assert request.pr_revision == "refs/pr/1" and repository.head.id == head
    assert set(repository.at("refs/pr/1").files) == {".gitattributes", "config.json", "x.txt"}
    api.create_branch("someone/nano", branch="dev")
    api.create_tag("someone/nano", tag="v1")
    refs = api.list_repo_refs("someone/nano", include_pull_requests=True)
    assert {ref.name for ref in (*refs.branches, *refs.tags, *refs.pull_requests)} == {"main", "dev", "v1", "refs/pr/1"}


def test_only_those_with_the_right_may_read_and_write(api, hub):
    hub.add_repository("model", "other/hidden", {}, private=True)
    gated = hub.add_repository("model", "other/gated", {"config.json": b"{}"}, gated=True)
    assert not api.repo_exists("other/hidden")
    with pytest.raises(errors.GatedRepoError):
        api.hf_hub_download("other/gated", "config.json")
    gated.granted.add("someone")
    assert api.file_exists("other/gated", "config.json") and not api.file_exists("other/gated", "model.safetensors")
    reader = hub.add_user("other", role="read")
    for token in (None, reader.token):
        with pytest.raises(errors.HfHubHTTPError) as refused:
            api.create_commit("other/gated", additions(x_txt=b"x"), commit_message="no", token=token)
        assert refused.value.response.status_code == 403
    with pytest.raises(errors.HfHubHTTPError) as refused:
        api.model_info("other/gated", token="hf_wrong")
    assert refused.value.response.status_code == 401
    with pytest.raises(errors.RevisionNotFoundError):
        api.model_info("other/gated", revision="v9")


def test_a_lost_reply_leaves_the_whole_commit_and_a_dropped_request_none(api, hub):
    repository = hub.add_repository("model", "someone/nano", {"config.json": b"{}"})
    head = repository.head.id
    hub.faults.add(faults.drop(), method="POST", path="/commit/")
    lost = hub.faults.add(faults.lose_reply(), method="POST", path="/commit/")
    for expected in (head, None):
        with pytest.raises(huggingface_hub.utils.httpx.RemoteProtocolError):
            api.create_commit("someone/nano", additions(x_txt=b"x"), commit_message="again")
        assert (repository.head.id == head) == (expected == head)
    assert lost.count == 1 and repository.head.parent == head
    assert [request.status for request in hub.requested("POST", "/commit/")] == [0, 0]
