"""The programs of `ops.clients` against an engine that answers as vLLM was recorded to, direct and through the
gateway; and the judgement of what they say."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ops.clients import __main__ as program
from ops.clients import table
from ops.clients.clients import CLIENTS, SUITES, Client, chosen
from ops.clients.install import HOME, Installation, pins
from ops.clients.programs.kit import Target
from ops.clients.run import DIRECT, THROUGH, Record, Words, read, run
from ops.clients.table import Verdict, judge
from tests import golden
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.engine_wire import DONE, error_body, sse
from tests.kit.missing import CLIENTS_OF_NODE, lacking
from tests.kit.running import gateway

pytestmark = pytest.mark.timeout(120)  # programs of other languages start on a busy machine

QUICK = {client.key: client for client in CLIENTS}
OF_PYTHON = ("openai-python", "anthropic-python", "open-webui", "httpx-sse", "aiohttp-sse-client")
OF_NODE = ("openai-javascript", "anthropic-javascript", "ai-sdk-compatible", "eventsource-parser")
ECHO = echo_script()
LONG_WAIT = 100.0  # seconds until a client must have left
PARIS, RED = '{"city": "Paris"}', '{"colour": "red"}'


class Mimic:
    """Answers every trial."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: dict[str, dict[str, Any]] = {}
        self._set_running(0)

    def _set_running(self, count: int) -> None:
        self._engine.metrics = b'vllm:num_requests_running{engine="0"} %d.0\n' % count

    async def __call__(self, turn: Turn) -> None:
        path = turn.path.partition("?")[0]
        if path == "/v1/audio/transcriptions":
            await turn.respond(200, {"text": "hello"})
        elif path == "/v1/embeddings":
            await ECHO(turn)
        elif turn.method == "GET":
            kept = self._kept.get(path.rpartition("/")[2])
            await turn.respond(200 if kept else 404, kept or error_body("not found", status=404))
        elif turn.json()["model"] == "no-such-model":
            await turn.respond(404, error_body("The model does not exist.", status=404, type_="NotFoundError"))
        elif turn.json().get("temperature") == -1 or turn.json().get("max_tokens") == -1:
            await turn.respond(400, error_body("below 0", status=400, type_="BadRequestError"))
        elif "Count from 1" in turn.body.decode():
            await self._long(turn)
        elif path == "/v1/chat/completions":
            await self._chat(turn)
        elif path == "/v1/responses":
            await self._response(turn)
        else:
            await self._message(turn)

    async def _long(self, turn: Turn) -> None:
        self._set_running(1)
        if turn.is_chat:
            await turn.send("1")
        else:
            await turn.start()
            await turn.frame(*golden.load("messages-stream").frames()[:3])
        await turn.cancelled(LONG_WAIT)
        self._set_running(0)

    async def _chat(self, turn: Turn) -> None:
        ask = turn.json()
        if "tools" not in ask:
            texts = [RED] if "response_format" in ask else ["Red", " it is."]
            if not turn.wants_stream:
                await turn.answer("".join(texts))
                return
            await turn.send(*texts)
            await turn.finish()
            return
        call = {
            "index": 0,
            "id": "call-1",
            "type": "function",
            "function": {"name": "weather", "arguments": PARIS},
        }
        if turn.wants_stream:
            chunk = json.loads(turn.shape.content("").removeprefix(b"data: "))
            chunk["choices"][0]["delta"] = {"tool_calls": [call]}
            await turn.start()
            await turn.end(turn.shape.role(), sse(chunk), turn.shape.finish("tool_calls"), DONE)
        else:
            whole = turn.shape.whole([""], ["tool_calls"], 7, 8)
            whole["choices"][0]["message"]["tool_calls"] = [call]
            await turn.respond(200, whole)

    async def _response(self, turn: Turn) -> None:
        ask = turn.json()
        if turn.wants_stream:
            await turn.start()
            await turn.end(*golden.load("responses-stream").frames())
            return
        id = f"resp_{turn.number}"
        self._kept[id] = golden.load("responses").json() | {
            "id": id,
            "previous_response_id": ask.get("previous_response_id"),
        }
        await turn.respond(200, self._kept[id])

    async def _message(self, turn: Turn) -> None:
        ask, body = turn.json(), golden.load("messages").json()
        if "count_tokens" in turn.path:
            await turn.respond(200, {"input_tokens": body["usage"]["input_tokens"]})
        elif "tools" in ask and turn.wants_stream:
            events = [
                {
                    "type": "content_block_start",
                    "index": 0,
                    "content_block": {"type": "tool_use", "id": "t", "name": "weather", "input": {}},
                },
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "input_json_delta", "partial_json": PARIS},
                },
            ]
            first, *_, stop, delta, last = golden.load("messages-stream").frames()
            middle = [f"event: {event['type']}\n".encode() + sse(event) for event in events]
            await turn.start()
            await turn.end(first, *middle, stop, delta, last)
        elif turn.wants_stream:
            await turn.start()
            await turn.end(*golden.load("messages-stream").frames())
        elif "tools" in ask:
            call = {"type": "tool_use", "id": "t", "name": "weather", "input": json.loads(PARIS)}
            await turn.respond(200, body | {"content": [call]})
        else:
            structured = ask.keys() & {"output_format", "output_config"}
            await turn.respond(200, body | {"content": [{"type": "text", "text": RED if structured else "Red."}]})


@pytest.fixture
async def targets() -> AsyncIterator[dict[str, Target]]:
    async with Engine() as engine:
        engine.auto(Mimic(engine))
        async with gateway(engine, max_inflight=1, keepalive_seconds=0.05) as app:
            yield {
                name: Target(url, url, engine.url, "m1", "m1", silence=0.3)
                for name, url in ((DIRECT, engine.url), (THROUGH, app.url))
            }


async def outcome(client: Client, targets: dict[str, Target], *python: str) -> Words:
    command = [*client.command(Installation(HOME))]
    words, trouble = await asyncio.to_thread(run, [*python, *command[len(python) :]], targets, 100.0)
    assert trouble == ""
    assert words
    return words


@pytest.mark.parametrize("key", OF_PYTHON)
async def test_each_feature_of_a_client_in_python_works_direct_and_through(
    key: str, targets: dict[str, Target]
) -> None:
    words = await outcome(QUICK[key], targets, sys.executable)
    assert {feature: said for feature, said in words.items() if judge(said) is not Verdict.WORKS} == {}
    assert {"stream", "abort", "silence"} <= words.keys()


async def test_curl_works_direct_and_through(targets: dict[str, Target]) -> None:
    if shutil.which("curl") is None:
        lacking("curl", "apt-get install curl")
    words = await outcome(QUICK["curl"], targets, sys.executable)
    assert {feature: said for feature, said in words.items() if judge(said) is not Verdict.WORKS} == {}


@pytest.mark.parametrize("key", OF_NODE)
async def test_each_feature_of_a_client_in_javascript_works_direct_and_through(
    key: str, targets: dict[str, Target]
) -> None:
    if not Installation(HOME).installed:
        lacking("the clients in JavaScript", CLIENTS_OF_NODE, in_ci=False)
    words = await outcome(QUICK[key], targets)
    assert {feature: said for feature, said in words.items() if judge(said) is not Verdict.WORKS} == {}


async def test_a_feature_that_the_gateway_spoils_is_told(targets: dict[str, Target]) -> None:
    closed = "http://127.0.0.1:9"
    nowhere = Target(closed, closed, targets[DIRECT].engine, "m1", "m1")
    words = await outcome(QUICK["httpx-sse"], {DIRECT: targets[DIRECT], THROUGH: nowhere}, sys.executable)
    assert judge(words["stream"]) is Verdict.THROUGH_ONLY
    record = Record("httpx-sse", "0.4", words)
    assert table.bad(record)
    assert "✓ **✗**" in table.tables([record])
    assert "stream: `direct: nothing; through: ConnectError" in table.tables([record])


@pytest.mark.parametrize(
    ("direct", "through", "verdict"),
    [
        ("", "", Verdict.WORKS),
        ("NotFound: a", "NotFound: b", Verdict.DIRECT_TOO),
        ("", "NotFound: b", Verdict.THROUGH_ONLY),
        ("NotFound: a", "", Verdict.DIRECT_ONLY),
        ("NotFound: a", "ServerError: b", Verdict.DIFFERENT),
        ("", None, Verdict.UNKNOWN),
    ],
)
def test_a_cell_is_judged_by_both_sides(direct: str, through: str | None, verdict: Verdict) -> None:
    words = {DIRECT: direct} | ({} if through is None else {THROUGH: through})
    assert judge(words) is verdict
    assert verdict.bad is (verdict in (Verdict.THROUGH_ONLY, Verdict.DIFFERENT, Verdict.UNKNOWN))


def test_a_suite_is_counted_and_the_generated_part_of_a_page_is_replaced() -> None:
    said = read('noise\n{"target": "direct", "feature": "a", "words": ""}\n')
    assert said == {"a": {"direct": ""}}
    words = {"a": {DIRECT: "", THROUGH: ""}, "b": {DIRECT: "failed: x", THROUGH: "failed: y"}}
    made = table.tables([Record(SUITES[0].key, "1", words)])
    assert f"| {SUITES[0].name} | 1 | 2 | 1 | 1 | 0 |" in made
    page = "# A\n\n<!-- clients: written by x -->\nold\n<!-- /clients -->\n"
    assert table.page(page, made) == page.replace("old", made)
    with pytest.raises(ValueError, match="clients"):
        table.page("# A", made)


def test_every_client_has_a_pinned_version_and_is_found_by_its_name() -> None:
    own = {"of the system", "0.12.4"}
    assert {client.package for client in (*CLIENTS, *SUITES)} - pins().keys() == own
    assert [client.key for client in chosen(["openai-p"])] == ["openai-python"]
    assert len({client.key for client in chosen([])}) == len(CLIENTS) + len(SUITES)


def test_what_cannot_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["no-such-client"])
    assert ended.value.code == 2
    assert "no-such-client" in capsys.readouterr().err
