"""A Hub on the loopback interface, for the real clients: `with HubServer() as hub: ...`.

    owner = hub.add_user("someone")
    repository = hub.add_repository("model", "someone/nano", {"config.json": b"{}"})
    ... run a client with HF_ENDPOINT=hub.endpoint, HF_TOKEN=owner.token and HF_HUB_DISABLE_XET=1 ...
    assert repository.head.files["config.json"] == b"{}"
    assert hub.requested("HEAD", r"/resolve/main/config\\.json")

`hub.faults` makes requests go wrong (see `faults`), `hub.requests` lists those that came in.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub.faults import Faults
from hub.protocol import Request, Response
from hub.pushing import HubApi
from hub.repositories import Repository, User


@dataclass(frozen=True)
class Recorded:
    """A request that came in.

    Attributes:
        method: "GET", ...
        path: Quoted, without the query.
        status: Of the reply; 0 where none was sent.
        authorized: Whether an Authorization header came with it.
        body: Of the request.
        size: Bytes of the reply's body.
    """

    method: str
    path: str
    status: int
    authorized: bool
    body: bytes
    size: int


class HubServer(HubApi):
    """The Hub, its accounts, repositories and faults; listens from `with` on, or from `start` to `stop`.

    Attributes:
        endpoint: For HF_ENDPOINT.
        storage: Where LFS files are; another origin, as the Hub's is, so that clients must not send it their token.
        faults: What is to go wrong.
        requests: What came in, oldest first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults = Faults()
        self.requests: list[Recorded] = []
        self._listening: list[_Server] = []

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; on the ports of the time before, where there was one."""
        self.endpoint, self.storage = self._listen(self.endpoint), self._listen(self.storage)

    def _listen(self, url: str) -> str:
        server = _Server(("127.0.0.1", urlsplit(url).port or 0), type("Handler", (_Handler,), {"hub": self}))
        self._listening.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    def stop(self) -> None:
        """Refuse connections and close those there are; what is stored stays."""
        while self._listening:
            server = self._listening.pop()
            server.shutdown()
            server.server_close()

    def add_user(self, name: str, role: str = "write") -> User:
        """A user with a new token; the same name may have several."""
        user = User(name, f"hf_{name}{role}{len(self.users)}".ljust(37, "x"), role)
        self.users[user.token] = user
        return user

    def add_repository(self, kind: str, repo_id: str, files: dict[str, bytes], **attributes: Any) -> Repository:
        """A repository with these files on main; `attributes` are those of `Repository` (private, gated, ...)."""
        repository = Repository(kind, repo_id, **attributes)
        repository.commit(files)
        self.repositories[kind, repo_id] = repository
        return repository

    def requested(self, method: str | None = None, path: str = "") -> list[Recorded]:
        """The requests of that method whose path holds the regular expression."""
        return [r for r in self.requests if method in (None, r.method) and re.search(path, r.path)]

    def reply_to(self, request: Request) -> Response:
        """The reply to a request, true or faulty; the request is recorded before it leaves."""
        action = self.faults.take(request)
        response = action(lambda: self.answer(request)) if action else self.answer(request)
        authorized = "authorization" in request.headers
        self.requests.append(
            Recorded(request.method, request.path, response.status, authorized, request.body, len(response.body))
        )
        return response


class _Server(ThreadingHTTPServer):
    """Closes its connections when it stops, as a server that goes down does."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was faster


class _Handler(BaseHTTPRequestHandler):
    """Reads requests off a connection and writes the replies."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True  # the client gave up waiting, or has gone

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        response = self.hub.reply_to(Request(self.command, url.path, query, headers, self._body(headers)))
        body = b"" if self.command == "HEAD" else response.body
        if response.status == 0:
            self.close_connection = True
            return
        self.send_response(response.status)
        for key, value in response.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(body if response.sent is None else body[: response.sent])
        if response.sent is not None:
            self.close_connection = True
            if response.reset:
                # Closing a socket that lingers for no time sends RST in the place of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: `HubServer.requests` is the log."""
