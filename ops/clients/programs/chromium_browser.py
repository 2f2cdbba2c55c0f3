"""`fetch` and `EventSource` in a page of another origin, in Chromium: `chromium_browser CHROMIUM TARGETS`. Needs
`--cors-origins` at the gateway."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ops.clients.programs.kit import TRIAL_SECONDS, Target, busy, main, running, until

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-extensions"),
)
FEATURES = ("whole", "stream", "EventSource", "abort", "silence", "404", "400")


class Page:
    """The page's server: it hands out one trial at a time and gets its result."""

    def __init__(self) -> None:
        self._next: queue.Queue[dict[str, Any]] = queue.Queue(1)
        self._results: queue.Queue[str] = queue.Queue(1)
        page = Path(__file__).with_name("page.html").read_bytes()
        asked, results = self._next, self._results

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send("text/html", page)

            def do_POST(self) -> None:
                said = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/result":
                    results.put(json.loads(said)["words"])
                    self._send("application/json", b"{}")
                else:
                    self._send("application/json", json.dumps(asked.get()).encode())

            def _send(self, kind: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *values: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def run(self, feature: str, target: Target) -> None:
        """Raises AssertionError with what went wrong in the page."""
        self._next.put({"feature": feature, "target": {"url": target.url, "model": target.model}})
        words = self._results.get(timeout=TRIAL_SECONDS)
        assert not words, words


def trial(page: Page, feature: str) -> Callable[[Target], None]:
    def run(target: Target) -> None:
        if feature == "silence":
            with busy(target):
                page.run(feature, target)
            return
        page.run(feature, target)
        if feature == "abort":
            until(lambda: running(target) == 0, "the engine goes on generating")

    return run


if __name__ == "__main__":
    browser = sys.argv.pop(1)
    page = Page()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        command = [browser, *FLAGS, f"--user-data-dir={home}", page.url]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            main({feature: trial(page, feature) for feature in FEATURES})
        finally:
            child.terminate()
            child.wait()
