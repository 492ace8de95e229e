"""Weights by the address of a file, from a plain web server."""

import functools
import http.server
import shutil
import threading

import pytest
import torch
from huggingface_hub import constants

from mixer_finetune import UserError, load_backbone


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the folder `www`; `paths` lists what was asked for."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    paths = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            paths.append(self.path)

    handler = functools.partial(Handler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.paths, running.folder = paths, tmp_path / "www"
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


def test_an_address_is_downloaded_once_and_named_when_it_is_not_there(server):
    model = load_backbone("resmlp_12_224", num_classes=3, image_size=32).eval()
    torch.save(model.state_dict(), server.folder / "resmlp.pth")
    address = f"{server.url}/resmlp.pth"
    images = torch.randn(1, 3, 32, 32)
    for _ in range(2):
        assert torch.equal(load_backbone(address).eval()(images), model(images))
    assert server.paths == ["/resmlp.pth"]
    with pytest.raises(UserError, match=r"nothing\.pth can't be had: the server answers 404"):
        load_backbone(f"{server.url}/nothing.pth")
    shutil.rmtree(server.folder)


def test_an_address_where_nothing_listens_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="can't be reached .*; download it elsewhere"):
        load_backbone("http://127.0.0.1:9/Mixer-B_16.npz")
    assert not list(tmp_path.rglob("*.npz"))
