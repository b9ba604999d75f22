"""A hub of models and data sets on this machine, for what downloads from one: HF_ENDPOINT=hub.address.

    with Hub({"Qwen/Qwen2.5-32B": folder, "datasets/owner/name": folder}) as hub: ...

Serves what huggingface_hub asks for when it downloads: what a repository is, its files, and each file (whole or from a
byte on). `hub.asked` has the paths.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """A context manager; repositories are folders, those of data sets have names that begin with datasets/."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories, self.asked = repositories, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def file(self, path: str) -> Path | None:
        """Of /NAME/resolve/REVISION/FILE."""
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        folder, file = self.repositories.get(name), rest.partition("/")[2]
        return folder / file if folder and file and (folder / file).is_file() else None

    def about(self, path: str) -> dict | list | None:
        """Of /api/models/NAME/revision/MAIN or /api/models/NAME/tree/MAIN."""
        name = path.removeprefix("/api/").removeprefix("models/")
        name, _, is_tree = name.partition("/tree/")
        folder = self.repositories.get(name.partition("/revision/")[0])
        if folder is None:
            return None
        files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        if is_tree:
            return [
                {"type": "file", "path": name, "size": size, "oid": _etag(folder / name)}
                for name, size in files.items()
            ]
        return {"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": [{"rfilename": f} for f in files]}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, *_) -> None:
        pass

    def _answer(self, *, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        status, headers, body = 404, {"X-Error-Code": "EntryNotFound"}, b""
        if path.startswith("/api/"):
            if (about := self.hub.about(path)) is not None:
                status, headers, body = 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
        elif (file := self.hub.file(path)) is not None:
            start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].partition("-")[0])
            body = file.read_bytes()[start:]
            status, headers = 206 if start else 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(file)}"'}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
