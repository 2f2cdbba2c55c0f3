"""The most expensive requests known for each size limit: bodies whose content costs their parser the most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Group = Literal["plain", "few", "many", "patterns"]
CHAT: Final = "/v1/chat/completions"
LARGEST: Final = 16 * 1024 * 1024 - 256  # bytes


@dataclass(frozen=True, slots=True)
class Case:
    """`build` makes a body of about the given size in bytes. `group`: the deny list of the gateway."""

    name: str
    build: Callable[[int], bytes]
    path: str = CHAT
    group: Group = "plain"
    size: int = LARGEST
    headers: Mapping[str, str] = field(default_factory=dict)


IMAGE: Final = b'{"type":"image_url","image_url":{"url":"data:x"}}'


def chat(messages: bytes, more: bytes = b"") -> bytes:
    return b'{"model":"m1","temperature":0' + more + b',"messages":' + messages + b"}"


def said(content: bytes) -> bytes:
    """A chat of one message with this JSON value as its content."""
    return chat(b'[{"role":"user","content":' + content + b"}]")


def filled(piece: bytes, size: int) -> bytes:
    return piece * max(1, size // len(piece))


def listed(piece: bytes, size: int) -> bytes:
    """A JSON list that repeats one value."""
    return b"[" + filled(piece + b",", size) + piece + b"]"


def text(piece: str, size: int) -> bytes:
    return said(b'"' + filled(piece.encode(), size) + b'"')


def members(name: str, size: int) -> bytes:
    """Many members: all with different names, or all with the same name."""
    if "%" not in name:
        return chat(b"[]", filled(b',"%b":0' % name.encode(), size))
    return chat(b"[]", b"".join(b',"%b":0' % (name % n).encode() for n in range(size // 13)))


def twice(body: bytes) -> bytes:
    """The body with its last member repeated."""
    start, _, rest = body.partition(b',"messages":')
    return start + start[start.rindex(b",") :] + b',"messages":' + rest


def numbered(field_name: str, value: str, size: int) -> bytes:
    """One member that is an object with many members."""
    made = ",".join(f'"{n}":{value}' for n in range(size // (len(value) + 11)))
    return chat(b'[{"role":"user","content":"x"}]', f',"{field_name}":{{{made}}}'.encode())


def deep(size: int) -> bytes:
    return said(b"[" * (size // 2) + b"]" * (size // 2))


def inputs(piece: bytes, size: int) -> bytes:
    return b'{"model":"m1","input":' + listed(piece, size) + b"}"


def prompts(piece: bytes, size: int) -> bytes:
    return b'{"model":"m1","temperature":0,"prompt":' + listed(piece, size) + b"}"


def picture(size: int) -> bytes:
    url = b"data:image/png;base64," + filled(b"iVBORw0KGgoAAAANSUhEUgAA", size)
    return said(b'[{"type":"image_url","image_url":{"url":"' + url + b'"}},{"type":"text","text":"what?\\n"}]')


def readers(size: int) -> bytes:
    request = b'{"stream":true,' + text("hello world, ", size)[1:]
    return b'{"request":' + request + b',"delays_ms":[' + b"0," * 49 + b"0]}"


def tools(size: int) -> bytes:
    schema = b'{"type":"object","properties":{"a":{"type":"string"}}}'
    tool = b'{"type":"function","function":{"name":"f","parameters":' + schema + b"}}"
    return chat(b'[{"role":"user","content":"x"}]', b',"tools":' + listed(tool, size))


CASES: Final = (
    Case("a small request", lambda n: said(b'"hello"'), size=100),
    Case("text", lambda n: text("hello world, ", n)),
    Case("text of 64 KiB", lambda n: text("hello world, ", n), size=65_536),
    Case("a picture in a data URL", picture),
    Case("escapes", lambda n: text("\\n", n)),
    Case("escapes of Unicode", lambda n: text("\\u00e9", n)),
    Case("text that is not ASCII", lambda n: text("é", n)),
    Case("white space", lambda n: said(b'"x"' + b" " * n)),
    Case("a member twice, of 40,000", lambda n: twice(members("k%06d", n)), size=520_000),
    Case("the same member", lambda n: members("k", n)),
    Case("the same member, 200 KB", lambda n: members("k", n), size=200_000),
    Case("the same member, one with an escape", lambda n: members("k", n)[:-1] + b',"\\n":0}'),
    Case("many members", lambda n: members("k%06d", n)),
    Case("nested deep", deep),
    Case("nested deep in a member", lambda n: chat(b"[]", b',"x":' + b"[" * n)),
    Case("messages of nothing", lambda n: chat(listed(b"{}", n))),
    Case("messages of nothing, 60,000", lambda n: chat(listed(b"{}", n)), size=180_000),
    Case("short messages", lambda n: chat(listed(b'{"role":"user","content":"x\\n"}', n)), size=2_000_000),
    Case("parts of one message", lambda n: said(listed(b'{"type":"text","text":"x\\n"}', n))),
    Case("numbers", lambda n: said(listed(b"1.5", n))),
    Case("numbers and an escape", lambda n: chat(b'[{"role":"\\n","content":' + listed(b"1.5", n) + b"}]")),
    Case("numbers and an escape, 80 KB", lambda n: said(b'["\\n",' + listed(b"1.5", n) + b"]"), size=80_000),
    Case("empty lists and an escape", lambda n: said(b'["\\n",' + listed(b"[]", n) + b"]")),
    Case("lists in lists", lambda n: said(b'["\\n",' + listed(b"[[[[[]]]]]", n) + b"]")),
    Case("logit_bias of the vocabulary", lambda n: numbered("logit_bias", "-0.5", n), size=4_000_000),
    Case("stream_options", lambda n: numbered("stream_options", "0", n)),
    Case("tools", tools),
    Case("a stop list", lambda n: chat(b'[{"role":"user","content":"x"}]', b',"stop":' + listed(b'"\\n"', n))),
    Case("token ids", lambda n: prompts(b"1", n), path="/v1/completions"),
    Case("prompts", lambda n: prompts(b'"x"', n), path="/v1/completions"),
    Case("inputs", lambda n: inputs(b'"x"', n), path="/v1/embeddings"),
    Case("inputs of ids", lambda n: inputs(b"[1,2]", n), path="/v1/embeddings"),
    Case("not UTF-8 at its end", lambda n: text("x", n)[:-8] + b'\xff"}]}'),
    Case("not JSON at its end", lambda n: text("x", n) + b"x"),
    Case("50 readers", readers, path="/-/readers"),
    Case("passed through: text", lambda n: text("hello world, ", n), path="/v1/responses"),
    Case("passed through: lists", lambda n: said(listed(b"[]", n)), path="/v1/responses"),
    Case("passed through: objects", lambda n: said(listed(b"{}", n)), path="/v1/responses"),
    Case("passed through: long integers", lambda n: said(listed(b"9" * 4299, n - 8192)), path="/v1/responses"),
    Case("passed through: escapes", lambda n: text("\\n\\ud83d\\ude00", n), path="/v1/responses"),
    Case("10 texts: images", lambda n: said(listed(IMAGE, n)), path="/v1/responses", group="few"),
    Case("10 texts: JSON in texts", lambda n: said(listed(rb'"[{\"a\":\"\\u0062\"}]"', n)), group="few"),
    Case("10 texts: text", lambda n: text("hello world, ", n), group="few"),
    Case("10 texts: U+FDFA", lambda n: text("\ufdfa", n), group="few"),
    Case("10 texts: U+FDFA, 12 KB", lambda n: text("\ufdfa", n), group="few", size=12_000),
    Case("10 texts: marks", lambda n: text("\u0316\u0300", n), group="few"),
    Case("10 texts: parts", lambda n: said(listed(b'{"type":"text","text":"x\\n"}', n)), group="few"),
    Case("10 texts: passed through", lambda n: text("hello, ", n), path="/v1/responses", group="few"),
    Case("10,000 texts: text", lambda n: text("hello world, ", n), group="many"),
    Case("10,000 texts: text of 64 KiB", lambda n: text("hello, ", n), group="many", size=65_536),
    Case("10,000 texts: U+FDFA", lambda n: text("\ufdfa", n), group="many"),
    Case("100 patterns: text", lambda n: text("hello world, ", n), group="patterns"),
)  # fmt: skip


def rules(group: Group) -> str:
    """The deny list of a group; it matches none of the bodies above."""
    words = {"plain": 0, "few": 10, "many": 10_000, "patterns": 0}[group]
    made = [f"forbidden word {n} of many" for n in range(words)]
    if group == "patterns":
        made += [f"re:forbidden (a|b){{2,9}} {n}\\d+" for n in range(100)]
    return "\n".join(made)
