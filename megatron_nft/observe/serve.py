"""A run's page, or that of several, on localhost: made anew at every request, and reloading itself while a run lasts.

Run folders come in; pages go out, as self-contained as the files (html.py). Nothing else is served, and nobody but this
machine's browsers is answered: a page of another site can't read it under a name of its own. Called by report.py.
"""

import tomllib
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from megatron_nft.config import Config
from megatron_nft.observe.compare import RunFolderError, read_run, render_comparison
from megatron_nft.observe.facts import read_state, written_s
from megatron_nft.observe.html import render_page
from megatron_nft.observe.owner import DEAD_S, silent_s
from megatron_nft.observe.records import read_step_reports
from megatron_nft.observe.run_page import answers_of
from megatron_nft.observe.step_line import duration
from megatron_nft.observe.timeline import newest_rows

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")


def page_of(folders: Sequence[Path], *, reloads: bool = False) -> str:
    """The page of a run, or of several.

    Raises:
        RunFolderError: a folder is no run's.
    """
    states = [_state(folder) for folder in folders]
    if len(folders) > 1:
        running = any(state["verdict"] == "running" for state in states)
        return render_comparison([read_run(folder) for folder in folders], reloads=reloads and running)
    folder, state = folders[0], states[0]
    read_run(folder)  # says what is wrong with it
    records = read_step_reports(folder / "metrics.jsonl")
    last = max((record.step for record in records if record.kind == "step"), default=0)
    recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    return render_page(
        config=Config.model_validate(recipe),
        verdict=state["verdict"] or "not recorded",
        minutes=state["minutes"],
        records=records,
        answers=answers_of(folder).records if (folder / "rollouts.jsonl").is_file() else [],
        facts=state["facts"],
        timeline=newest_rows(folder, last) or state["timeline"],
        reloads=reloads,
    )


def _state(folder: Path) -> dict[str, Any]:
    """As written; but a run writes now and then, and one that was killed has not written that it has ended."""
    state, silent = read_state(folder), silent_s(folder)
    if state["verdict"] == "running":
        written = written_s(folder)
        if silent is None:  # a copy has no owner; a run that lives writes every two minutes
            silent = written if written > 2 * DEAD_S else 0.0
        state["minutes"] += max(written - silent, 0.0) / 60  # until it was last heard of
        if silent > DEAD_S:
            state["verdict"] = f"interrupted: not heard of for {duration(silent)}"
    return state


def make_server(folders: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """Listens; `serve_forever` answers.

    Raises:
        OSError: the port is taken.
    """
    return ThreadingHTTPServer((HOST, port), _handler(lambda: page_of(folders, reloads=True)))


def _handler(page: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in NAMES:
                return self.send_error(403, "this page is for localhost")
            if self.path.partition("?")[0] not in ("/", "/report.html"):
                return self.send_error(404)
            try:
                status, text = 200, page()
            except RunFolderError as error:
                status, text = 500, f"error: {error}"
            body = text.encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Type", f"text/{'html' if status == 200 else 'plain'}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Requests are no news."""

    return Handler
