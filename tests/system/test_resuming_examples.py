"""The example clients print the whole answer though their connections are cut again and again."""

from __future__ import annotations

import asyncio
import shutil
import sys

import pytest

from tests.kit.cutting_relay import CuttingRelay, Shears
from tests.kit.engine import Engine, Turn
from tests.kit.missing import NODE, needs
from tests.kit.patience import patience
from tests.kit.running import gateway
from tests.ops.kit import ROOT

NODE_PATH = shutil.which("node")
WORDS = [f"wörd-{n} 🙂 " for n in range(12)]


COMMANDS = pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "ops/examples/resume.py"],
        pytest.param([NODE_PATH or "", "ops/examples/resume.mjs"], marks=needs(NODE_PATH, "Node.js", NODE)),
    ],
    ids=["python", "node"],
)


@COMMANDS
async def test_an_example_prints_the_whole_answer(command: list[str]) -> None:
    async with Engine() as engine, gateway(engine) as app:
        shears = Shears()
        async with CuttingRelay(app.url, shears) as relay:
            shears.cut_after(3)
            process = await asyncio.create_subprocess_exec(
                *command, relay.url, "m1", "hello", cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            turn: Turn = await engine.next_request()
            await turn.send(*WORDS[:4])
            async with patience(60):
                while shears.cuts < 1:  # noqa: ASYNC110 - the relay sets no event
                    await asyncio.sleep(0)
                shears.cut_after(2)
                await turn.send(*WORDS[4:8])
                while shears.cuts < 2:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0)
                await turn.send(*WORDS[8:])
                await turn.finish()
                output, _ = await process.communicate()
            assert process.returncode == 0
            assert output.decode() == "".join(WORDS) + "\n"
            assert engine.generations == 1


@COMMANDS
async def test_an_example_without_a_prompt_says_how_it_is_run(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, "http://x", "m1", cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, told = await process.communicate()
    assert process.returncode == 1
    assert f"{command[1]} URL MODEL PROMPT [KEY]" in told.decode()
    assert told.count(b"\n") == 1


LEAVES = pytest.mark.parametrize(
    "command",
    [
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, 'ops/examples'); from resume import events\n"
            "for data in events(sys.argv[1], {'model': 'm1', 'messages': []}, {}):\n"
            "    if 'two' in data: break\n"
            "print('left')",
        ],
        pytest.param(
            [
                NODE_PATH or "",
                "--input-type=module",
                "-e",
                "import {events} from './ops/examples/resume.mjs';"
                "for await (const data of events(process.argv[1], {model: 'm1', messages: []}))"
                "  if (data.includes('two')) break;"
                "console.log('left')",
            ],
            marks=needs(NODE_PATH, "Node.js", NODE),
        ),
    ],
    ids=["python", "node"],
)


@LEAVES
async def test_an_example_that_leaves_ends_the_generation(command: list[str]) -> None:
    async with Engine() as engine, gateway(engine) as app:
        process = await asyncio.create_subprocess_exec(*command, app.url, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        turn: Turn = await engine.next_request()
        await turn.send("one", "two")
        await turn.cancelled(20)
        output, _ = await process.communicate()
        assert (process.returncode, output) == (0, b"left\n")
