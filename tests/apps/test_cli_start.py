"""How fast the command starts: only the verbs that compute pay for importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mesh.config import FolderLock, StateFolder
from tests.runtime.tiny_model import write_tiny_gemma

SLOW = ("torch", "transformers", "llvmlite", "tokenizers")  # to import; torch takes a second
SCRIPT = f"""
import sys
from apps.cli import main
status = 0
try:
    main()
except SystemExit as end:
    status = end.code
print("IMPORTED", *[name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""
CHOICE = {"text": "hello", "token_ids": [1], "finish_reason": "stop"}


class _Daemon(BaseHTTPRequestHandler):
    """Answers as a daemon without models and devices would."""

    def do_GET(self) -> None:
        self._answer("application/json", json.dumps(_ANSWERS[self.path.partition("?")[0]]))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/potluck/rm":
            self._answer("application/json", json.dumps({"removed": "m", "freed_bytes": 0}))
            return
        event = (
            {"stage": "done", "done_bytes": 1, "wanted_bytes": 1, "name": "m", "how": "copied"}
            if self.path == "/potluck/pull"
            else {"choices": [CHOICE]}
        )
        self._answer("text/event-stream", f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    def _answer(self, kind: str, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Not among the test's output."""


_ANSWERS = {
    "/potluck/models": {"device": "", "models": []},
    "/potluck/ps": {"devices": []},
    "/potluck/transfers": {"transfers": []},
    "/potluck/plan": {
        "model": "m",
        "chosen": {
            "reason": "",
            "stages": [{"stage": 0, "layers": [0, 1], "device": ""}],
            "head": [],
        },
        "devices": [{"id": "", "name": "here"}],
        "timelines": [],
        "candidates": [],
        "not_shown": 0,
    },
}


@pytest.fixture
def daemon_home(tmp_path: Path) -> Iterator[Path]:
    """The state folder of a daemon that runs, as far as the command can tell."""
    folder = StateFolder.open(tmp_path / "home")
    lock = FolderLock(folder)
    lock.take()
    server = HTTPServer(("127.0.0.1", 0), _Daemon)
    folder.daemon.write_text(json.dumps({"api_port": server.server_port}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield folder.path
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        lock.free()


def imported(*words: str, status: int = 0) -> list[str]:
    """What of SLOW a verb imported; it must end with this status."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    return done.stderr.rpartition("IMPORTED")[2].split()


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("ps",),
        ("plan", "m"),
        ("rm", "m"),
        ("pull", "m"),
        ("run", "m", "the cat"),
    ],
    ids=" ".join,
)
def test_a_verb_that_asks_the_daemon_imports_no_torch(
    daemon_home: Path, words: tuple[str, ...]
) -> None:
    assert imported(*words, "--home", str(daemon_home)) == []


@pytest.mark.parametrize(("words", "status"), [(("--help",), 0), (("up", "--help"), 0)], ids=str)
def test_help_imports_no_torch(words: tuple[str, ...], status: int) -> None:
    assert imported(*words, status=status) == []


@pytest.mark.parametrize("verb", ["status", "plan"])
def test_a_verb_without_a_daemon_imports_no_torch(tmp_path: Path, verb: str) -> None:
    words = ("plan", "m") if verb == "plan" else (verb,)
    assert imported(*words, "--home", str(tmp_path), status=2) == []


def test_models_on_the_disk_are_listed_and_removed_without_torch(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path).path / "models"
    folder.mkdir()
    write_tiny_gemma(folder / "tiny.gguf", layers=2, seed=1)
    assert imported("list", "--json", "--home", str(tmp_path)) == []
    assert imported("rm", "tiny", "--home", str(tmp_path)) == []
    assert not (folder / "tiny.gguf").exists()
