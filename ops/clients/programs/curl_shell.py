"""curl, as people call it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.clients.programs.kit import COLOUR, COUNT, LONG, SHORT, Target, busy, main, stops, wav


def command(url: str, payload: dict[str, Any] | None, *flags: str) -> list[str]:
    data = [] if payload is None else ["-H", "Content-Type: application/json", "-d", json.dumps(payload)]
    return ["curl", "-sS", "--max-time", "120", *flags, url, *data]


def said(url: str, payload: dict[str, Any] | None, *flags: str) -> tuple[int, str]:
    """The status and the body."""
    asked = command(url, payload, "-w", "\n%{http_code}", *flags)
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def chat(target: Target, prompt: str = COLOUR, tokens: int = SHORT, **more: Any) -> dict[str, Any]:
    ask = {"model": target.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    return {**ask, "temperature": 0, **more}


def asked(target: Target, path: str, payload: dict[str, Any] | None, *flags: str, status: int = 200) -> str:
    got, body = said(target.url + path, payload, *flags)
    assert got == status, f"{got} {body[:300]}"
    return body


def whole(target: Target) -> None:
    answer = json.loads(asked(target, "/v1/chat/completions", chat(target)))
    assert answer["choices"][0]["message"]["content"]


def stream(target: Target, *flags: str) -> None:
    body = asked(target, "/v1/chat/completions", chat(target, stream=True), "-N", *flags)
    assert body.endswith("data: [DONE]\n\n")


def usage(target: Target) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    body = asked(target, "/v1/chat/completions", chat(target, **options), "-N")
    assert '"completion_tokens"' in body.split("data: ")[-2]


def responses(target: Target) -> None:
    ask = {"model": target.model, "input": COLOUR, "max_output_tokens": SHORT}
    assert json.loads(asked(target, "/v1/responses", ask))["output"]


def responses_streamed(target: Target) -> None:
    ask = {"model": target.model, "input": COLOUR, "max_output_tokens": SHORT, "stream": True}
    assert "event: response.created" in asked(target, "/v1/responses", ask, "-N")


def chained(target: Target) -> None:
    ask = {"model": target.model, "input": COLOUR, "max_output_tokens": SHORT, "store": True}
    first = json.loads(asked(target, "/v1/responses", ask))["id"]
    second = json.loads(asked(target, "/v1/responses", {**ask, "previous_response_id": first}))
    assert second["previous_response_id"] == first
    assert json.loads(asked(target, f"/v1/responses/{first}", None))["id"] == first


def upload(target: Target) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "a.wav")
        sound.write_bytes(wav())
        form: Sequence[str] = ("-F", f"file=@{sound}", "-F", f"model={target.model}")
        asked(target, "/v1/audio/transcriptions", None, *form)


def embeddings(target: Target) -> None:
    status, body = said(f"{target.embeds}/v1/embeddings", {"model": target.embed_model, "input": "a"})
    assert (status, len(json.loads(body)["data"])) == (200, 1)


def abort(target: Target) -> None:
    payload = chat(target, COUNT, LONG, stream=True, ignore_eos=True)
    child = subprocess.Popen(command(f"{target.url}/v1/chat/completions", payload, "-N"), stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    stops(target, child.terminate)
    child.communicate()


def silence(target: Target) -> None:
    with busy(target):
        stream(target)


def unknown_model(target: Target) -> None:
    body = asked(target, "/v1/chat/completions", {**chat(target), "model": "no-such-model"}, status=404)
    assert json.loads(body)["error"]["message"]


def invalid(target: Target) -> None:
    body = asked(target, "/v1/chat/completions", chat(target, temperature=-1), status=400)
    assert json.loads(body)["error"]["message"]


if __name__ == "__main__":
    main(
        {
            "whole": whole,
            "stream": stream,
            "usage": usage,
            "Responses": responses,
            "Responses, streamed": responses_streamed,
            "Responses, chained": chained,
            "upload": upload,
            "embeddings": embeddings,
            "abort": abort,
            "silence": silence,
            "404": unknown_model,
            "400": invalid,
        }
    )
