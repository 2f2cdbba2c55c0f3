"""vLLM's own tests through the gateway: demands, and the program on a small made-up checkout."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from ops.vllm_tests import __main__ as program
from ops.vllm_tests import outcome, sources
from ops.vllm_tests.demand import Demand, Impossible, Together, served
from ops.vllm_tests.outcome import Module
from ops.vllm_tests.run import Run, Suite
from ops.vllm_tests.stand import Stand, listening

pytestmark = pytest.mark.timeout(300)  # each starts pytest, an engine and a gateway

ROOT = Path(__file__).parent.parent.parent
SUITE = Suite.read(ROOT / "ops" / "vllm_tests" / "modules.toml")
LONGEST = {"smollm2": 8192, "minilm": 512}
MODELS = {"org/chat": "smollm2", "org/embed": "minilm"}

ENGINE = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        known = {"/health": {}, "/version": {"version": "0"}, "/v1/models": {"data": [{"id": "org/chat"}]}}
        self.answer(200 if self.path in known else 404, known.get(self.path, {}))

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(200, {"served_by": sys.argv[2:]})

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
UTILS = """
class RemoteOpenAIServer:
    host = port = uds = None
    def __init__(self, *args, **kwargs):
        raise AssertionError("the class of the checkout starts nothing")
    def url_for(self, *parts):
        return f"http://{self.host}:{self.port}/" + "/".join(parts)
"""
MODULE = """
import json, pathlib, urllib.request
import pytest
from tests.utils import RemoteOpenAIServer

@pytest.fixture(scope="module")
def server():
    with RemoteOpenAIServer("org/chat", ["--dtype", "half", "--max-num-seqs", "9", "--x"]) as one:
        yield one

@pytest.fixture(scope="module")
def another(server):
    with RemoteOpenAIServer("org/chat", ["--y"]) as one:
        yield one

@pytest.fixture
def get(server):
    return lambda path: urllib.request.urlopen(server.url_for(path), timeout=300)

def test_both(get):
    assert json.load(get("version")) == {"version": "0"}

@pytest.mark.parametrize("word", ["a", "ü [1]"])
def test_neither(get, word):
    assert json.load(get("version"))["version"] == word

def test_first_time(get):
    marker = pathlib.Path(__file__).with_name("tried")
    tried = marker.exists()
    marker.touch()
    assert tried

def test_engine_alone(get):
    assert get("version").headers["x-request-id"] is None

def test_its_words(server):
    ask = urllib.request.Request(server.url_for("tokenize"), b"{}", {"content-type": "application/json"})
    words = json.load(urllib.request.urlopen(ask, timeout=300))["served_by"]
    assert words == ["--dtype", "bfloat16", "--x", "--seed", "0", "--served-model-name", "org/chat"]

def test_two_at_once(server, another):
    urls = {one.url_for("version") for one in (server, another)}
    assert [json.load(urllib.request.urlopen(url, timeout=300)) for url in urls] == [{"version": "0"}] * 2

@pytest.mark.skip(reason="no lobster here")
def test_skipped(get):
    pass

@pytest.mark.xfail(reason="known")
def test_expected(get):
    assert False

def test_of_nobody_s_server():
    pass

def test_left_out():
    assert False
"""
UNHAD = """
from tests.utils import RemoteOpenAIServer
def test_of_a_model():
    RemoteOpenAIServer("org/large", [])
def test_of_gpus():
    RemoteOpenAIServer("org/chat", ["--tensor-parallel-size=2"])
def test_of_what_does_not_start():
    RemoteOpenAIServer("org/chat", ["--broken"], seed=None)
"""
HERE = "tests/entrypoints"


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[Run]:
    """A checkout of three modules, and an engine that is no vLLM."""
    checkout, engine = tmp_path / "vllm", tmp_path / "engine.py"
    (checkout / HERE).mkdir(parents=True)
    for name, text in {
        "tests/__init__.py": "",
        "tests/utils.py": UTILS,
        f"{HERE}/__init__.py": "",
        f"{HERE}/test_a.py": MODULE,
        f"{HERE}/test_b.py": UNHAD,
        f"{HERE}/test_c.py": "import no_such_package\n",
        "pyproject.toml": "[tool.pytest.ini_options]\n",
    }.items():
        (checkout / name).write_text(text)
    engine.write_text(ENGINE)

    def command(demand: Demand, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        _, words = served(demand, MODELS, LONGEST)
        if "--broken" in words:
            return [sys.executable, "-c", "import sys; sys.exit('it is broken')"], {}
        return [sys.executable, str(engine), str(port), *words], dict(demand.env)

    out = tmp_path / "out"
    out.mkdir()
    stand = Stand(out, command, most=1, patience=30.0, gateway=["--redis", "off"])
    path = [str(checkout), str(ROOT)]
    with listening(stand):
        unwanted = [f"{HERE}/test_a.py::test_left_out", f"{HERE}/test_z.py"]
        yield Run(stand, checkout, [sys.executable, "-m", "pytest"], {}, path, out, 30.0, unwanted)


def outcomes(module: Module) -> dict[str, str]:
    return {test.id.partition("::")[2]: test.outcome for test in module.tests}


def test_each_test_is_asked_through_the_gateway_and_what_fails_direct_too(made_up: Run, tmp_path: Path) -> None:
    paths = [f"{HERE}/test_{name}.py" for name in "abcd"]
    missing, first, second, third = made_up.modules(paths)
    assert outcomes(first) == {
        "test_both": "passed",
        "test_neither[a]": "direct",
        r"test_neither[\xfc [1]]": "direct",
        "test_first_time": "unsteady",
        "test_engine_alone": "alone",
        "test_its_words": "passed",
        "test_two_at_once": "passed",
        "test_skipped": "skipped",
        "test_expected": "skipped",
        "test_of_nobody_s_server": "passed",
    }
    assert first.counts == Counter(passed=4, served=3, direct=2, alone=1, unsteady=1, skipped=2)
    assert outcomes(second) == {
        "test_of_a_model": "skipped",
        "test_of_gpus": "skipped",
        "test_of_what_does_not_start": "direct",
    }
    assert (third.tests, third.trouble) == (
        (),
        "not collected: ModuleNotFoundError: No module named 'no_such_package'",
    )
    assert (missing.path, missing.trouble) == (paths[3], "not in this release")
    assert [module.bad for module in (missing, first, second, third)] == [False, True, False, False]

    for module in (missing, first, second, third):
        module.save(tmp_path / "records")
        assert Module.load(tmp_path / "records", module.path) == module
    text = outcome.report(
        [first, second, third, missing], {f"{HERE}/test_z.py": "needs eyes"}, "0.32.0", ["tests/new.py"]
    )
    assert "| test_a.py | 4 | 3 | 1 | 2 | 1 | 2 |" in text
    assert "| **all** | 4 | 3 | 1 | 3 | 1 | 4 |" in text
    alone, direct, rest = (part.partition("\n## ") for part in [*text.split("\n## Fail ", 2)[1:], text])
    assert "test_engine_alone`" in alone[0]
    assert "test_neither[a]`: direct `AssertionError: assert '0' == 'a'" in direct[0]
    assert "RuntimeError: the engine exited with 1" in direct[0]
    for line in (
        "- `test_a.py`: 1 × no lobster here",
        "- `test_b.py`: 1 × needs the model org/large",
        "- `test_b.py`: 1 × needs several GPUs (--tensor-parallel-size)",
        "- `test_d.py`: not in this release",
        "- `test_z.py`: needs eyes",
        "- `tests/new.py`: not named in modules.toml",
    ):
        assert line in rest[2] + text


@pytest.mark.parametrize("direct", [True, False])
def test_a_server_that_was_not_ready_in_time_is_no_failure_of_a_test_and_is_tried_again(direct: bool) -> None:
    slow = "E  RuntimeError: the engine is not ready after 400 s: x.log"
    found: dict[str, Any] = {"id": "a::b", "outcome": "failed", "served": False, "seconds": 1.0}
    through = found | {"words": "assert 1 == 2" if direct else slow}
    module = outcome.judged(
        "a", [through], [found | {"words": slow}] if direct else [], [], trouble="", seconds=1.0
    )
    assert (module.tests, module.trouble) == ((), "no server: the engine is not ready after 400 s")
    assert module.cut
    assert module.bad


def test_a_pytest_that_is_cut_off_is_no_success(made_up: Run) -> None:
    path = f"{HERE}/test_a.py"
    (made_up.checkout / path).write_text("import os\ndef test_a(): pass\ndef test_b(): os._exit(9)\n")
    (module,) = made_up.modules([path])
    assert outcomes(module) == {"test_a": "passed"}
    assert module.trouble.startswith("pytest ended with 9 on the way to the gateway")
    assert module.bad


def test_servers_asked_for_alike_are_one_those_in_use_stay_and_none_is_left(tmp_path: Path) -> None:
    engine = tmp_path / "engine.py"
    engine.write_text(ENGINE)
    starters: list[threading.Thread] = []

    def command(demand: Demand, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        starters.append(threading.current_thread())
        return [sys.executable, str(engine), str(port), *demand.args], {}

    stand = Stand(tmp_path, command, most=1, patience=30.0, gateway=["--redis", "off"])
    ask: dict[str, Any] = {"model": "org/chat", "args": ["--a"], "env": {}}
    unlike = ask | {"args": ["--b"]}

    def asks_and_leaves() -> None:
        with stand.serving(ask):
            pass

    asker = threading.Thread(target=asks_and_leaves)
    asker.start()
    asker.join()
    assert all(starter.is_alive() for starter in starters), "a gateway ends with the thread that started it"
    try:
        with stand.serving(ask) as first, stand.serving(ask) as again, stand.serving(unlike) as other:
            assert first == again != other
            assert set(first) == {"engine", "gateway"}
            assert [health(one["gateway"]) for one in (first, other)] == [200, 200]
        with stand.serving(ask | {"args": ["--c"]}) as other, pytest.raises(OSError, match="refused"):
            health(first["engine"])
        assert health(other["gateway"]) == 200
    finally:
        stand.close()
    with pytest.raises(OSError, match="refused"):
        health(other["gateway"])


def health(url: str) -> int:
    with urlopen(f"{url}/health", timeout=300) as answer:
        return int(answer.status)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            "--dtype half --max-model-len 18192",
            "--dtype bfloat16 --max-model-len 8192 --served-model-name org/chat",
        ),
        ("--max-num-seqs 8 --gpu-memory-utilization=0.4 --enforce-eager --port 1", "--served-model-name org/chat"),
        (
            "--enable-lora --lora-modules a=/x b=/y --max-lora-rank 64 --tokenizer a",
            "--served-model-name org/chat a b",
        ),
        ("--served-model-name x y --lora-modules a=/x", "--served-model-name x y a"),
        ("--a=b=c --max_model_len 20 --d e f", "--a b=c --max-model-len 20 --d e f --served-model-name org/chat"),
    ],
)
def test_a_small_model_on_a_cpu_gets_what_it_can_take(asked: str, words: str) -> None:
    assert served(Demand("org/chat", tuple(asked.split())), MODELS, LONGEST) == ("smollm2", tuple(words.split()))


@pytest.mark.parametrize(
    ("demand", "why"),
    [
        (Demand("org/large", ()), "needs the model org/large"),
        (Demand("org/chat", ("--tensor-parallel-size=2",)), "several GPUs"),
        (Demand("org/chat", ("--uds", "/x")), "a socket"),
        (Demand("org/chat", ("--watermark-config", "{}")), "Triton"),
        (Demand("org/chat", ("--speculative-config", "{}")), "a draft model"),
    ],
)
def test_what_cannot_be_had_is_said(demand: Demand, why: str) -> None:
    with pytest.raises(Impossible, match=why):
        served(demand, MODELS, LONGEST)


def test_servers_together_keep_what_tells_them_apart_alone() -> None:
    same = Together(("--max-model-len", "4096", "--tool-call-parser", "hermes"), ("alias",), {})
    asked = (
        "--max-model-len",
        "128",
        "--seed",
        "0",
        "--tool-call-parser",
        "hermes",
        "--reasoning-parser",
        "qwen3",
    )
    assert same.words(asked, ["a", "b"]) == (
        *same.flags, "--reasoning-parser", "qwen3", "--served-model-name", "a", "b", "alias",
    )  # fmt: skip


def test_a_hub_of_names_leads_to_our_models(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    hub = sources.hub(tmp_path / "hub", {"org/chat": model}, ["org/adapter"])
    for name, files in (("chat", ["config.json"]), ("adapter", [])):
        entry = hub / "hub" / f"models--org--{name}"
        snapshot = entry / "snapshots" / (entry / "refs" / "main").read_text()
        assert [file.name for file in snapshot.iterdir()] == files


def test_the_suite_names_each_module_once_and_knows_what_is_new(tmp_path: Path) -> None:
    named = [*SUITE.modules, *SUITE.left_out]
    assert not [path for path, count in Counter(named).items() if count > 1]
    assert all(path.startswith("tests/entrypoints/") and path.partition("::")[0].endswith(".py") for path in named)
    assert set(SUITE.models.values()) == set(SUITE.together) == {"smollm2", "minilm"} == set(program.LONGEST)
    new, old = tmp_path / HERE / "test_new.py", tmp_path / SUITE.modules[0]
    for path, text in ((new, "RemoteOpenAIServer(x)"), (old, "RemoteOpenAIServer(x)")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (new.parent / "test_pure.py").write_text("RemoteOpenAIServerless = 1")
    assert SUITE.unknown(tmp_path) == [f"{HERE}/test_new.py"]


def test_a_checkout_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sources.SourceError, match=r"no checkout of vLLM: it has no tests/utils\.py"):
        sources.checkout(tmp_path, "0.32.0", tmp_path, Path(sys.executable))


def test_without_pip_it_says_how_the_tests_can_be_had_otherwise(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no index' >&2; exit 1\n")
    broken.chmod(0o700)
    with pytest.raises(sources.SourceError, match=r"(?s)no index.*git clone --branch v0\.32\.0 .*--checkout"):
        sources.checkout(None, "0.32.0", tmp_path / "home", broken)


def test_a_wrong_command_line_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, why in (
        (["nowhere"], "no module has any of nowhere"),
        (["--release", "0.1"], "invalid choice: '0.1'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            program.main(words)
        assert stopped.value.code == 2
        assert why in capsys.readouterr().err
