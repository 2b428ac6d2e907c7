"""A model hub on this machine, for what a hub can do to its users."""

import hashlib
import json
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
    """Serves the folders below `root`, `models/<owner>/<name>` and `datasets/<owner>/<name>`.

    A repository's name says what is wrong with it: html, 500, short, cut, late; else nothing is.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.root = root
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running(root: Path) -> Iterator[Hub]:
    """A hub that answers within the block."""
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
        self.server.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("api/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, rest = parts[1] if len(parts) > 1 else "", parts[2:]
        folder = self.server.root / kind / "/".join(parts[:2])
        if name.startswith("500"):
            self.say(500, PAGE)
        elif name.startswith("html"):
            self.say(200, PAGE, kind="text/html")
        elif not folder.is_dir():
            self.say(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif path.startswith("api/"):
            self.about(folder, rest)
        elif rest[:1] == ["resolve"]:
            self.file(folder / "/".join(rest[2:]), name)
        else:
            self.say(404, b"{}")

    do_HEAD = do_GET

    def about(self, folder: Path, rest: list[str]) -> None:
        """What the hub's API says of a repository."""
        paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        found: Any = {
            "id": "/".join(folder.parts[-2:]),
            "sha": SHA,
            "siblings": [{"rfilename": path} for path in paths],
        }
        if rest[:1] == ["tree"]:
            found = [
                {"type": "file", "path": path, "size": (folder / path).stat().st_size, "oid": SHA}
                for path in paths
                if path.startswith("/".join(rest[2:]))
            ]
        self.say(200, json.dumps(found).encode(), kind="application/json")

    def file(self, file: Path, name: str) -> None:
        """A file's content, or the part of it that is asked for."""
        if not file.is_file():
            self.say(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{etag(file)}"', "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(content)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"
            status, content = 206, content[start:end]
        if name.startswith("short") and file.suffix == ".safetensors":
            content = content[: len(content) // 2]
        told = len(content)
        cut = name.startswith("cut") and file.suffix in (".safetensors", ".jsonl")
        if cut or (name.startswith("late") and file.stem.endswith("2")):
            content = content[: max(0, file.stat().st_size // 2 - start)]
        self.say(status, content, told, **headers)
        if len(content) < told:
            self.close_connection = True
            self.connection.close()

    def say(
        self, status: int, content: bytes, told: int | None = None, kind: str = "", **headers: Any
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if told is None else told))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
