"""A Hugging Face hub on this machine that fails in the ways a hub can fail."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"  # of every repository's only commit
PAGE = b"<!doctype html><title>We will be back soon</title>"


class Hub(ThreadingHTTPServer):
    """Server of the folders `models/<owner>/<name>` and `datasets/<owner>/<name>` below `root`.

    A repository whose name begins with html, 500, short, cut or late fails in that way.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.root = root
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the environment of a process that runs this checkout's code with this hub."""
        return os.environ | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }


@contextmanager
def running(root: Path) -> Iterator[Hub]:
    """Run a hub for the length of the block."""
    hub = Hub(root)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(f"{self.command} {path}")
        parts = path.removeprefix("api/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, rest = parts[1] if len(parts) > 1 else "", parts[2:]
        folder = self.server.root / kind / "/".join(parts[:2])
        if name.startswith("500"):
            self.send(500, PAGE)
        elif name.startswith("html"):
            self.send(200, PAGE, kind="text/html")
        elif not folder.is_dir():
            self.send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif path.startswith("api/"):
            self.answer_api(folder, rest)
        elif rest[:1] == ["resolve"]:
            self.send_file(folder / "/".join(rest[2:]), name)
        else:
            self.send(404, b"{}")

    do_HEAD = do_GET

    def answer_api(self, folder: Path, rest: list[str]) -> None:
        """Answer a request of the API for a repository's facts or files."""
        paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        answer: Any = {
            "id": "/".join(folder.parts[-2:]),
            "sha": SHA,
            "siblings": [{"rfilename": path} for path in paths],
        }
        if rest[:1] == ["tree"]:
            answer = [
                {"type": "file", "path": path, "size": (folder / path).stat().st_size, "oid": SHA}
                for path in paths
                if path.startswith("/".join(rest[2:]))
            ]
        self.send(200, json.dumps(answer).encode(), kind="application/json")

    def send_file(self, file: Path, name: str) -> None:
        """Send a file, or the range of it that is requested."""
        if not file.is_file():
            self.send(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{etag(file)}"', "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(content)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"
            status, content = 206, content[start:end]
        if name.startswith("short") and file.suffix == ".safetensors":
            content = content[: len(content) // 2]
        length = len(content)
        cut = name.startswith("cut") and file.suffix in (".safetensors", ".jsonl")
        if cut or (name.startswith("late") and file.stem.endswith("2")):
            content = content[: max(0, file.stat().st_size // 2 - start)]
        self.send(status, content, length, **headers)
        if len(content) < length:
            self.close_connection = True
            self.connection.close()

    def send(
        self, status: int, content: bytes, length: int | None = None, kind: str = "", **headers: Any
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
