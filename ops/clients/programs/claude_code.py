"""Claude Code, the program: `claude_code CLAUDE TARGETS`. Its own prompt and tools are left out, because a small
model's context does not hold them; every address but loopback is closed to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from ops.clients.programs.kit import COLOUR, COUNT, Target, busy, main, stops

FLAGS = (
    *("--system-prompt", "You are brief.", "--tools", "", "--setting-sources", "", "--strict-mcp-config"),
    *("--no-session-persistence", "--max-turns", "1"),
)
CLOSED = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
SECONDS = 140
TRIES = 4  # it samples, and a small model's answer may fill the limit of tokens, which Claude Code calls an error


class Trials:
    """Those of the binary at this path."""

    def __init__(self, binary: str) -> None:
        self._binary = binary

    def _start(self, target: Target, home: str, prompt: str, *flags: str, tokens: int, model: str = "") -> Any:
        environment = {
            **CLOSED,
            "PATH": os.environ["PATH"],
            "HOME": home,
            "CLAUDE_CONFIG_DIR": home,
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_SMALL_FAST_MODEL": target.model,
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(tokens),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "MAX_THINKING_TOKENS": "0",
        }
        command = [self._binary, "-p", prompt, "--model", model or target.model, *FLAGS, *flags]
        return subprocess.Popen(
            command, env=environment, cwd=home, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def _say(self, target: Target, prompt: str, *flags: str, model: str = "") -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as home:
            child = self._start(target, home, prompt, *flags, tokens=300, model=model)
            try:
                output, errors = child.communicate(timeout=SECONDS)
            finally:
                child.kill()
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert lines, errors[:300]
        return lines

    def whole(self, target: Target) -> None:
        for _ in range(TRIES):
            (answer,) = self._say(target, COLOUR, "--output-format", "json")
            if "output token maximum" not in answer["result"]:
                break
        assert answer["result"], answer
        assert not answer["is_error"], answer["result"]

    def stream(self, target: Target) -> None:
        """Its events as they come, with the deltas of the API's stream."""
        lines = self._say(
            target, COLOUR, "--output-format", "stream-json", "--verbose", "--include-partial-messages"
        )
        kinds = [line["event"]["type"] for line in lines if line["type"] == "stream_event"]
        assert "content_block_delta" in kinds, lines[-1].get("result")
        assert kinds[-1] == "message_stop"

    def usage(self, target: Target) -> None:
        (answer,) = self._say(target, COLOUR, "--output-format", "json")
        assert answer["usage"]["input_tokens"] > 0, answer.get("result")
        assert answer["usage"]["output_tokens"] > 0

    def abort(self, target: Target) -> None:
        with tempfile.TemporaryDirectory() as home:
            child = self._start(target, home, COUNT, tokens=2000)
            try:
                stops(target, child.terminate)
            finally:
                child.kill()
                child.communicate()

    def silence(self, target: Target) -> None:
        with busy(target):
            self.stream(target)

    def unknown_model(self, target: Target) -> None:
        (answer,) = self._say(target, COLOUR, "--output-format", "json", model="no-such-model")
        assert answer["is_error"]
        assert answer.get("api_error_status", 404) == 404, answer


if __name__ == "__main__":
    ours = Trials(sys.argv.pop(1))
    main(
        {
            "whole": ours.whole,
            "stream": ours.stream,
            "usage": ours.usage,
            "abort": ours.abort,
            "silence": ours.silence,
            "404": ours.unknown_model,
        }
    )
