"""Owns the seeds of the corpora: made of the recordings of vLLM, and of cases that matter to one reader.
Must not know what is found with them; inputs that once failed lie beside them as `found-*`.
Called as `python -m tests.fuzz.seeds`, which writes them anew."""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.redis.cache import Stored
from proxy.server.listener.proxy_protocol import V2
from proxy.wire.sse import DONE, Framer, chunk
from tests.fuzz.files import HASH, SECRET
from tests.fuzz.kit import in_pieces
from tests.fuzz.targets import CORPUS, TARGETS
from tests.golden import load
from tests.kit.fault_cases import broken_cases, surplus_cases, whole_cases

STREAMS: Final = ("chat-n2-seed-stream-usage", "completion-stream-usage", "chat-forced-tool-stream-usage")
BODIES: Final = ("chat-n2-seed", "completion", "chat-forced-tool")
EVENT: Final = b'data: {"id":"x-r0","choices":[{"index":%d,"delta":{"content":"%b"},"finish_reason":%b}]}\n\n'
TEXT: Final = EVENT % (0, b"a", b"null")
STOP: Final = EVENT % (0, b"", b'"stop"')
OTHER: Final = EVENT % (1, b"b", b'"stop"')
USAGE: Final = (
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},'
    b'"system_fingerprint":"vllm-0.32.0-a"}\n\n'
)
ERROR: Final = b'data: {"error":{"message":"m","type":"t","param":null,"code":500}}\n\n'
ABORTED: Final = b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"abort"}]}'
CRLF: Final = b"data: a\r\n\r\n: x\n\r\ndata: b\r\rdata: [DONE]\r\n\r\n"
MOST: Final = 1400  # bytes of a recorded stream: its first frames and its last


def recorded(name: str) -> bytes:
    """A recorded stream without most of its middle."""
    frames = load(name).frames()
    first, last, size = [frames[0]], frames[-4:], 0
    for frame in frames[1:-4]:
        size += len(frame)
        if size < MOST - sum(map(len, (*first[:1], *last))):
            first.append(frame)
    return b"".join([*first, *last])


def streams() -> list[bytes]:
    return [
        *map(recorded, STREAMS),
        TEXT * 3 + STOP + DONE,
        TEXT + OTHER + STOP + USAGE + DONE,
        TEXT + ERROR + DONE,
        b": ping\n\n" + TEXT.replace(b"\n", b"\r\n") + STOP.replace(b"\n\n", b"\r\r") + DONE,
        b"\xef\xbb\xbf" + TEXT + b"event: error\n" + ERROR,
        TEXT + EVENT % (0, b"", b'"abort"') + DONE,
        TEXT[:-40],
    ]


def stored() -> list[bytes]:
    wired = b"".join(map(chunk, (TEXT, STOP, USAGE, DONE)))
    plain = b"".join(map(chunk, (STOP, DONE)))
    cut = len(chunk(TEXT))
    body = b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}'
    vectors = b'{"data":[{"index":0,"embedding":[0.5]}]}'
    values = [
        Stored("stream", 1.0, wired, cut, plain, "text/event-stream", 3, 2),
        Stored("stream", 1.0, b"".join(map(chunk, (TEXT, STOP, DONE))), None, b"", "text/event-stream"),
        Stored("whole", 1.0, body),
        Stored("whole", 1.0, vectors),
    ]
    return [*map(msgspec.msgpack.encode, values), b"\x91" * 300, b""]


SPLITS: Final = (b"\x00", b"\x03\x20\x80\xf0")
KEYS: Final = f"""[[keys]]
name = "a"
sha256 = "{HASH}"
models = ["m1"]
rps = 0.5
priority = "low"

[[keys]]
name = "b"
sha256 = "{"0" * 64}"
tenant = "t"
streams = 2
"""
SETTINGS: Final = f"""backends = ["http://127.0.0.1:8000"]
port = 8080
redis = "redis://127.0.0.1:6379/0"
max_body_bytes = "16MiB"
first_token_timeout = 0.5
page = false
backend_api_key = "{SECRET}"
"""
CHAT, TEXTS, INPUT = 0, 1, 2
BODIES_IN: Final = (
    (CHAT, b'{"model":"m","messages":[{"role":"user","content":"hi \\u00e9"}],"max_tokens":8,"stream":true}'),
    (CHAT, b'{"messages":[],"stream_options":{"include_usage":false,"x":1},"seed":-1,"temperature":0.5}'),
    (CHAT, b'{"messages":[{"content":[{"type":"text","text":"a"}]}],"tools":[{"function":{"name":"f"}}],"n":2}'),
    (TEXTS, b'{"model":"m","prompt":["a","b"],"max_tokens":9,"best_of":2,"logit_bias":{"1":1e400}}'),
    (TEXTS, b'{"prompt":[[1,2],[3]],"user":"u","metadata":{"a":"b"}}'),
    (INPUT, b'{"model":"m","input":["a","b"],"encoding_format":"float"}'),
    (CHAT, b' \n{"messages":[],"m\\u006fdel":"x"} '),
    (CHAT, b'{"messages":[],"x":' + b"[" * 1200 + b"]" * 1200 + b"}"),
    (CHAT, b'{"messages":[],"x":NaN}'),
    (CHAT, b'\xef\xbb\xbf{"messages":[]}'),
    (INPUT, b'{"input":"a","model":"m","model":"n"}'),
    (CHAT, b'{"messages":[],"\\u006dodel":"m", "model":"n"}'),
)
PASSED_IN: Final = (
    (0, b'{"model":"m","input":"a","max_output_tokens":8}'),
    (0, b'{"model":"m","input":"a"}'),
    (1, b'{"model":"m","messages":[],"max_tokens":8}'),
    (2, b'{"messages":[[]],"max_completion_tokens":8,"max_tokens":3,"n":2}'),
    (3, b'{"model":"m","prompt":"a"}'),
    (4, b'{"query":"a","documents":["b"],"model":7}'),
)


def made() -> dict[str, list[bytes]]:
    """All seeds."""
    said = streams()
    bodies = [load(name).body for name in BODIES]
    vectors = b'{"object":"list","data":[%b],"model":"m","usage":{"prompt_tokens":4,"total_tokens":4}}'
    datum = b'{"index":%d,"object":"embedding","embedding":[0.5,-1e-3]}'
    cases = [case.answer for case in (*whole_cases(), *surplus_cases(), *broken_cases())]
    answers = [answer for answer in cases if 0 < len(answer) < 200]
    resp = [
        b"$5\r\nhello\r\n*2\r\n$-1\r\n:1\r\n-ERR no\r\n",
        b"+OK\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n:12\r\n",
        b"*3\r\n%1\r\n+a\r\n:1\r\n~1\r\n#t\r\n,1.5\r\n_\r\n(123\r\n=7\r\ntxt:abc\r\n",
        b"$100\r\nhalf",
    ]
    halves = (said[3], TEXT + DONE, TEXT + STOP, STOP + DONE + TEXT + DONE, TEXT + ERROR + DONE)
    twice = KEYS + KEYS.replace('"a"', '"c"')[:96]
    texts = ["a b", "ﬁne  ﷺ İ ẞ", "a\u00ad\u200bb \u0301\u0301", "가각 ｶﾞ", "x" * 70 + "\u0301" * 70]
    deep = b"x = " + b"[" * 1500 + b"]" * 1500
    return {
        "sse": [b"\x87" + CRLF, *(b"\x03" + in_pieces(one[-390:], 30, 90, 200)[1:] for one in said)],
        "chunks": [b"".join(map(chunk, Framer(1 << 20).feed(one))) for one in said[3:6]]
        + [b"5;a=b\r\nhello\r\n", b"005\r\nhello\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"A\r\n0123456789\r\n"],
        "frames": said,
        "feeder": [bytes([at % 2]) + in_pieces(one, 50, 128) for at, one in enumerate((*said, *said[4:]))][:14],
        "whole": [bytes([at % 2 * 3]) + in_pieces(body, 100) for at, body in enumerate(bodies)]
        + [b"\x06" + in_pieces(vectors % (datum % 0), 9), b"\x00" + in_pieces(ABORTED)],
        "fold": [bytes([kind]) + one for kind, one in zip((0, 1, 2), said, strict=False)] + [b"\x00" + said[4]],
        "split": [bytes([kind]) + one for one in (said[0], said[4], bodies[0]) for kind in (0, 5)],
        "answer": [b"\x80" + in_pieces(one, 60, 61, 200) for one in answers[::3]],
        "vectors": [b"\x01" + vectors % (datum % 0 + b"," + datum % 0), b"\x00" + vectors % b'{"index":0}']
        + [bytes([n - 1]) + vectors % b",".join(datum % at for at in reversed(range(n))) for n in (1, 3)],
        "inputs": [b'["a","\\u00e9"]', b"[[1,2],[3]]", b"[1,2]", b'"a"', b"[1.0]", b"[true]", b"[]", b"[[]]"],
        "request": [bytes([kind]) + body for kind, body in BODIES_IN],
        "intake": [bytes([kind]) + body for kind, body in BODIES_IN[:7]],
        "passed": [bytes([kind]) + body for kind, body in PASSED_IN],
        "opening": [
            b"PROXY TCP4 1.2.3.4 5.6.7.8 80 443\r\nGET / HTTP/1.1\r\n",
            b"PROXY TCP6 ::1 2001:db8::1 80 443\r\n",
            b"PROXY UNKNOWN ffff::1 x\r\n",
            b"PROXY TCP4 1.2.3.4\r\n",
            V2 + b"\x21\x11\x00\x0c" + bytes(range(12)) + b"GET",
            V2 + b"\x21\x21\x00\x28" + bytes(range(40)),
            V2 + b"\x20\x00\x00\x00",
            V2 + b"\x21\x11\xff\xff" + bytes(20),
        ],
        "replies": [split + one for one in resp for split in SPLITS],
        "stored": [b"\x00" + value for value in stored()]
        + [b"\x03" + said[4]]
        + [b"\x01" + one for one in halves],
        "keys": [
            KEYS.encode(),
            twice.encode(),
            b'keys = [{name = "a"}]',
            deep,
        ],
        "deny": [
            b"a secret\nre:pass\\w+\n# no\ntext:re:x\0\x02\x30\x60so a  Secret it is",
            "ﬁ\nẞ\nｶﾞ\0\x00ﬁnd".encode(),
        ],
        "texts": [in_pieces(text.encode(), 60, 120, 180) for text in texts],
        "settings": [SETTINGS.encode(), b"port = 99999\nprot = 1\n[x]\n", deep],
    }


def main() -> None:
    found = made()
    assert found.keys() == TARGETS.keys()
    total = 0
    for name, inputs in found.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for number, data in enumerate(inputs):
            (folder / f"seed-{number:02}").write_bytes(data)
            total += len(data)
    print(f"{sum(map(len, found.values()))} seeds of {len(found)} targets, {total} bytes")


if __name__ == "__main__":
    main()
