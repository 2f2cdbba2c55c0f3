"""A client that comes back to its stream after its connection was lost: no event is missing, none comes twice.

python ops/examples/resume.py http://127.0.0.1:8080 MODEL "Tell me a story" [KEY]
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

GRACE = 30  # seconds that the gateway keeps the stream after this client has left
TRIES = 8  # attempts in succession that bring nothing, in 6 s


def events(base: str, body: dict[str, Any], headers: dict[str, str]) -> Iterator[str]:
    """The data of the events of a streamed chat, which ends where the caller leaves. Raises HTTPError where the
    gateway refuses."""
    first = {"Content-Type": "application/json", "x-gateway-resume": f"{GRACE}; ids"}
    request = urllib.request.Request(
        f"{base}/v1/chat/completions", json.dumps(body | {"stream": True}).encode(), headers | first
    )
    name, last, tries = None, "0", 0
    try:
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    name = answer.headers["x-gateway-stream"]
                    for id, data in whole_events(answer):
                        last, tries = id, 0
                        yield data
                        if data == "[DONE]" or data.startswith('{"error"'):
                            return
            except urllib.error.HTTPError as e:
                if e.code < 500 or name is None:
                    raise  # an answer: it has gone, or something is wrong with the request
            except (OSError, http.client.HTTPException):
                pass  # the connection is lost
            tries += 1
            if name is None or tries > TRIES:
                raise ConnectionError(f"the stream was lost after event {last}")
            time.sleep(min(1.0, 0.05 * 2**tries))
            request = urllib.request.Request(
                f"{base}/v1/streams/{name}", headers=headers | {"Last-Event-ID": last}
            )
    except (GeneratorExit, KeyboardInterrupt):
        if name is not None:
            end(base, name, headers)  # else it would be generated for GRACE
        raise


def end(base: str, name: str, headers: dict[str, str]) -> None:
    """The client does not come back: the generation ends now."""
    request = urllib.request.Request(f"{base}/v1/streams/{name}", headers=headers, method="DELETE")
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except (OSError, http.client.HTTPException):
        pass  # it ends after GRACE


def whole_events(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The ids and the data of server-sent events. One that is cut is none, and neither is a comment."""
    id, data = "", list[str]()
    for line in lines:
        text = line.decode().rstrip("\r\n")
        if text.startswith("id:"):
            id = text[3:].strip()
        elif text.startswith("data:"):
            data.append(text[5:].removeprefix(" "))
        elif not text and data:
            yield id, "\n".join(data)
            data = []


def main() -> None:
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: python ops/examples/resume.py URL MODEL PROMPT [KEY]")
    base, model, prompt = sys.argv[1:4]
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    headers = {"Authorization": f"Bearer {sys.argv[4]}"} if len(sys.argv) > 4 else {}
    try:
        for data in events(base, body, headers):
            if data.startswith('{"error"'):
                sys.exit(f"\n{json.loads(data)['error']['message']}")
            if data != "[DONE]":
                for choice in json.loads(data).get("choices", ()):
                    print(choice["delta"].get("content") or "", end="", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    print()


if __name__ == "__main__":
    main()
