"""Continuing a sampled stream by its tokens: the engine is asked for their ids, which clients do not see. After a
break another engine goes on from the prompt's ids and those so far, over `/v1/completions`.

The rest is a sample of what the model would have said next, not what the broken engine would have said: it is no
second answer that could be compared, so only requests are continued whose parameters mean the same for a prompt
that is longer by what was generated."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from proxy.flights.continuing.comparison import Differs
from proxy.flights.continuing.replay import Replay
from proxy.flights.flight import FREE, STEP, Flight
from proxy.flights.ingest import Callbacks, Ingest, Timeouts
from proxy.upstream.http import KnownHead
from proxy.wire import PATHS, UNFINISHED, ApiRequest, FrameTemplate, Tokens, Usage, data_of, encode, stream_extras

IDS: Final = "ids"
"""How a stream was continued, in log, metrics and traces: by the ids of its tokens."""

MOST_PROMPT: Final = 1024 * 1024
"""Bytes of a prompt, and of its ids, for which ids are asked: they are kept while the stream lasts."""
MOST_IDS: Final = 128 * 1024  # tokens of one answer; a longer one is not continued
MOST_LISTED: Final = 64 * 1024  # bytes of the ids in one frame

_ENCODE: Final = msgspec.json.Encoder().encode
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_CHOICES: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_LISTED: Final = msgspec.json.Decoder(list[int])
_TOKENS: Final = msgspec.json.Decoder(Tokens)
_TEXT: Final = msgspec.json.Decoder(str)
_REASON: Final = msgspec.json.Decoder(str | None)
_LIMIT: Final = msgspec.json.Decoder(int | None)
_ANY: Final = msgspec.json.Decoder()
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError, KeyError)
_NULL: Final = Raw(b"null")
_NOTHING: Final = frozenset((b"null", b'""', b"[]", b"{}", b"false"))
_INVALID: Final = (400, 422)  # statuses for a request with a member that is not known
_HEAD: Final = ("id", "object", "created", "model")

_PASSED: Final = (
    "model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "logit_bias", "stop_token_ids", "ignore_eos", "skip_special_tokens", "priority", "user",
)  # fmt: skip
"""Parameters that mean the same for the rest. A repetition penalty counts the prompt's tokens as well."""
_COUNTED: Final = ("max_tokens", "max_completion_tokens", "min_tokens")
_OF_PROMPT: Final = (
    "messages", "prompt", "chat_template_kwargs", "add_special_tokens", "metadata", "store", "safety_identifier",
    "prompt_cache_key", "service_tier",
)  # fmt: skip
"""What makes the prompt, which is known by its ids, or concerns no engine."""
_KNOWN: Final = frozenset((*_PASSED, *_COUNTED, *_OF_PROMPT))
_NEUTRAL: Final[Mapping[str, frozenset[bytes]]] = {
    "n": frozenset((b"1", b"null")),
    "best_of": frozenset((b"1", b"null")),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), frozenset((b"0", b"0.0", b"null"))),
    **dict.fromkeys(("stop", "tools"), frozenset((b"[]", b"null"))),
    **dict.fromkeys(("logprobs", "echo", "use_beam_search"), frozenset((b"false", b"null"))),
    **dict.fromkeys(("seed", "top_logprobs", "suffix", "bad_words", "allowed_token_ids"), frozenset((b"null",))),
    "tool_choice": frozenset((b'"none"', b'"auto"', b"null")),
    "response_format": frozenset((b"null", b'{"type":"text"}')),
}
"""Members with the values under which they change nothing: others are counted or matched over the whole answer."""


def asks_for_ids(api_request: ApiRequest) -> bool:
    """Whether the ids of a request's tokens would continue its stream."""
    fields = api_request.fields
    if api_request.endpoint == "embeddings" or api_request.large is not None or not api_request.stream:
        return False
    for name, raw in fields.items():
        if name not in _KNOWN and bytes(raw).translate(None, b" \t\r\n") not in _NEUTRAL.get(name, ()):
            return False
    if len(api_request.prompt) > MOST_PROMPT or stream_extras(api_request):
        return False
    if api_request.endpoint != "chat" and "max_completion_tokens" in fields:
        return False
    try:
        _LIMIT.decode(fields.get("min_tokens", _NULL))
        return _limit(fields) is not None
    except _BROKEN:
        return False


def with_ids(body: bytes) -> bytes:
    """The body of a request that asks for the ids of its tokens."""
    return body.rstrip()[:-1] + b',"return_token_ids":true}'


def _limit(fields: Mapping[str, Raw]) -> int | None:
    """The most tokens of the answer. The engine's own default is not known here."""
    for name in ("max_completion_tokens", "max_tokens"):
        limit: int | None = _LIMIT.decode(fields.get(name, _NULL))
        if limit is not None:
            return limit
    return None


class TokenIds:
    """The ids of one stream's tokens so far. `usable`: they are all known, and they are its text."""

    __slots__ = ("build", "finished", "head", "ids", "prompt", "usable", "usage", "whole")

    def __init__(self, build: bytes) -> None:
        self.build = build  # of the engine that began it
        self.prompt = b""  # its ids as JSON, without brackets
        self.ids = array("I")
        self.head: dict[str, Raw] = {}
        self.usable = True
        self.whole = 0
        """Tokens up to which the text is whole: after a prompt that ends within a character vLLM 0.32 repeats the
        prompt's text. The last token of several in one frame may be such a part; -1: it is not known."""
        self.finished = False  # the choice has ended
        self.usage = False  # the usage chunk has come

    @property
    def prompt_tokens(self) -> int:
        return self.prompt.count(b",") + 1 if self.prompt else 0

    def hide(self, frame: bytes) -> bytes:
        """Take the ids of a frame, and return it as the engine sends it where they are not asked for."""
        data = data_of(frame)
        if data is None or data == b"[DONE]":
            return frame
        try:
            members = _MEMBERS.decode(data)
            choices = _CHOICES.decode(members.get("choices", Raw(b"[]")))
            changed = self._hide(members, choices)
        except _BROKEN:
            self.usable = False
            return frame
        if not changed:
            return frame
        return encode(_ENCODE({**members, "choices": choices}))

    def _hide(self, members: dict[str, Raw], choices: list[dict[str, Raw]]) -> bool:
        """Take the ids, and set their members to null. True: there were any."""
        if not self.head:
            self.head = {name: members[name] for name in _HEAD if name in members}
        if not choices:
            self.usage = self.usage or bytes(members.get("usage", _NULL)) != b"null"
            return False
        changed = self._take_prompt(members)
        for choice in choices:
            changed = self._take_prompt(choice) or changed
            raw = choice.get("token_ids", _NULL)
            if raw != _NULL:
                changed = True
                choice["token_ids"] = _NULL
            reason = _REASON.decode(choice.get("finish_reason", _NULL))
            if reason not in UNFINISHED:  # else readers do not get its text: an abort
                text = self._look_at(choice, reason, listed=bytes(raw) not in (b"null", b"[]"))
                if raw != _NULL:
                    self.take(raw, text=text)
        return changed

    def _take_prompt(self, members: dict[str, Raw]) -> bool:
        raw = members.get("prompt_token_ids", _NULL)
        if raw == _NULL:
            return False
        members["prompt_token_ids"] = _NULL
        if not self.prompt and len(bytes(raw)) <= MOST_PROMPT and self._are_ids(raw):
            self.prompt = bytes(raw).strip()[1:-1]
        return True

    def take(self, raw: Raw, *, text: bool) -> None:
        """More ids of its answer, as JSON. `text`: text came with them."""
        if len(bytes(raw)) > MOST_LISTED:
            self.usable = False
        elif self.usable and self._are_ids(raw):
            listed = _LISTED.decode(raw)
            self.ids.extend(listed)
            self.usable = len(self.ids) <= MOST_IDS
            if text:
                self.whole = len(self.ids) if len(listed) == 1 else -1

    def _are_ids(self, raw: Raw) -> bool:
        try:
            array("I", _LISTED.decode(raw))
        except _BROKEN:
            self.usable = False
        return self.usable

    def _look_at(self, choice: Mapping[str, Raw], reason: str | None, *, listed: bool) -> bool:
        """See whether the ids say what the text says: a parser of reasoning or tools makes other text of them.
        Returns whether text has come."""
        delta = _MEMBERS.decode(choice["delta"]) if "delta" in choice else {}
        other = any(name not in ("role", "content") and bytes(raw) not in _NOTHING for name, raw in delta.items())
        text = bytes(delta.get("content", choice.get("text", b""))) not in (b"", b'""', b"null")
        if (
            other
            or bytes(choice.get("index", b"0")) != b"0"
            or bytes(choice.get("logprobs", b"null")) != b"null"
            or (listed and "delta" in choice and "content" not in delta and reason is None)
            or (text and not listed)
        ):
            self.usable = False
        self.finished = self.finished or reason is not None
        return text

    def completes(self, *, usage: bool) -> bool:
        """Whether nothing of the answer is missing but [DONE] and its usage, which is known where it is wanted."""
        return self.finished and (self.usage or not usage or (self.usable and self.prompt_tokens > 0))

    def counts(self) -> Usage:
        """The tokens so far."""
        return Usage(self.prompt_tokens, len(self.ids), self.prompt_tokens + len(self.ids))

    def usage_chunk(self) -> bytes:
        """The chunk of usage that the engine did not come to send."""
        return encode(_ENCODE({**self.head, "choices": [], "usage": self.counts()}))

    def continues(self, api_request: ApiRequest) -> bool:
        """Whether the rest can be requested, and is right."""
        left = (_limit(api_request.fields) or 0) - self.whole  # 0: it had ended, and the frame was lost
        return self.usable and self.whole > 0 and bool(self.prompt) and left > 0 and is_plain_text(api_request)

    def request(self, api_request: ApiRequest) -> bytes:
        """The body of the request for the rest. Tokens of a character that did not come are generated again."""
        fields = api_request.fields
        del self.ids[self.whole :]
        so_far = ",".join(map(str, self.ids)).encode()
        members: dict[str, Any] = {name: fields[name] for name in _PASSED if name in fields}
        members |= {
            "prompt": Raw(b"[%b,%b]" % (self.prompt, so_far)),
            "max_tokens": (_limit(fields) or 0) - len(self.ids),
            "return_token_ids": True,
        }
        least = _LIMIT.decode(fields.get("min_tokens", _NULL)) or 0
        if least > len(self.ids):
            members["min_tokens"] = least - len(self.ids)
        return _ENCODE(members)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return len(self.prompt) + self.ids.itemsize * len(self.ids)

    def forget(self) -> None:
        """Keep nothing: there is no memory for it."""
        self.usable, self.prompt, self.whole = False, b"", 0
        del self.ids[:]


def is_plain_text(api_request: ApiRequest) -> bool:
    """Whether its prompt is nothing but text: an image's ids are places that only its request fills."""
    if api_request.endpoint != "chat":
        return True
    try:
        return all(map(_is_text, _ANY.decode(api_request.prompt)))
    except _BROKEN:
        return False


def _is_text(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


class _NoTemplate(FrameTemplate):
    """Knows no frame: each one is looked at, as one without ids would be missing."""

    def learn(self, frame: bytes) -> bool:
        return False

    def known(self, frame: bytes) -> str | None:
        return None


class IdsIngest(Ingest):
    """Records the ids of a stream's tokens, and hides them. They count to the memory budget."""

    __slots__ = ("_paid", "_token_ids")

    def __init__(self, flight: Flight, timeouts: Timeouts, callbacks: Callbacks, token_ids: TokenIds) -> None:
        super().__init__(flight, timeouts, callbacks)
        self._token_ids = token_ids
        self._twins = _NoTemplate()
        self._paid = FREE

    def head(self, status: int, headers: list[tuple[str, str]], known: KnownHead | None = None) -> None:
        """An engine that does not know ids may refuse the request for that."""
        if status in _INVALID and self._drops(status, headers):
            return
        super().head(status, headers, known)

    def _pass_on(self, frames: list[bytes], now: float) -> None:
        token_ids = self._token_ids
        super()._pass_on([token_ids.hide(frame) for frame in frames], now)
        if token_ids.size > self._paid:
            self._paid = token_ids.size + STEP
            if not self.flight.charge(self._paid):
                token_ids.forget()


class Rest:
    """Makes chunks of the broken stream from those of the request for its rest. In the place of a `Comparison`."""

    def __init__(self, token_ids: TokenIds, *, chat: bool) -> None:
        self._token_ids, self._chat = token_ids, chat
        self._before = len(token_ids.ids)
        self._begun = self._ended = False

    def renew(self) -> None:
        """Its frames are not compared with anything."""

    def end(self) -> None:
        """[DONE] has come. Raises Differs where the rest has not ended."""
        if not self._ended:
            raise Differs("no end")

    def feed(self, frame: bytes) -> bytes | None:
        """The chunk that readers get; None: nothing. Raises Differs for what is no rest of their stream."""
        try:
            return self._chunk(_MEMBERS.decode(data_of(frame) or b"{}"))
        except _BROKEN as e:
            raise Differs(f"what is not understood ({e})"[:200]) from None

    def _chunk(self, members: dict[str, Raw]) -> bytes | None:
        choices = _CHOICES.decode(members.get("choices", Raw(b"[]")))
        if len(choices) > 1:
            raise Differs("several choices")
        self._take_prompt(members)
        made: dict[str, Any] = dict(members) | self._token_ids.head
        if choices:
            made["choices"] = [self._choice(choices[0])]
        if bytes(members.get("usage", _NULL)) != b"null":
            made["usage"] = self._usage(_MEMBERS.decode(members["usage"]))
            self._token_ids.usage = self._token_ids.usage or not choices
        return encode(_ENCODE(made))

    def _choice(self, choice: dict[str, Raw]) -> dict[str, Any]:
        if bytes(choice.get("index", b"0")) != b"0" or self._ended:
            raise Differs("another choice" if not self._ended else "a later end")
        token_ids = self._token_ids
        if not self._begun and (token_ids.finished or len(token_ids.ids) != self._before):
            raise Differs("less than readers have by now")  # of a removed engine, before this one began
        self._take_prompt(choice)
        self._begun = True
        raw, text = choice.get("token_ids", _NULL), _TEXT.decode(choice.get("text", Raw(b'""')))
        if raw != _NULL:
            token_ids.take(raw, text=bool(text))
        else:
            token_ids.usable = False
        reason = _REASON.decode(choice.get("finish_reason", _NULL))
        self._ended = token_ids.finished = reason is not None and reason not in UNFINISHED
        if not self._chat:
            return choice | ({"token_ids": _NULL} if "token_ids" in choice else {})
        made: dict[str, Any] = {
            "index": 0,
            "delta": {"content": text},
            "logprobs": None,
            "finish_reason": reason,
        }
        if reason is not None and "stop_reason" in choice:
            made["stop_reason"] = choice["stop_reason"]
        if "token_ids" in choice:
            made["token_ids"] = None
        return made

    def _take_prompt(self, members: dict[str, Raw]) -> None:
        """Hide a prompt's ids, in the chunk or in its choice. Raises Differs where they are not what was sent."""
        echoed = members.get("prompt_token_ids", _NULL)
        if echoed == _NULL:
            return
        members["prompt_token_ids"] = _NULL
        if not self._begun and _LISTED.decode(echoed) != list(self._prompt()):
            raise Differs("another prompt")

    def _prompt(self) -> Iterator[int]:
        yield from _LISTED.decode(b"[%b]" % self._token_ids.prompt)
        yield from self._token_ids.ids[: self._before]

    def usage(self, completion: int) -> Usage:
        """The usage of the whole answer: its prompt is the client's, its completion both parts."""
        prompt, whole = self._token_ids.prompt_tokens, self._before + completion
        return Usage(prompt, whole, prompt + whole)

    def _usage(self, usage: dict[str, Raw]) -> dict[str, Any]:
        made: dict[str, Any] = dict(usage)
        made |= msgspec.structs.asdict(self.usage(_TOKENS.decode(usage["completion_tokens"])))
        if "prompt_tokens_details" in usage:
            made["prompt_tokens_details"] = None  # of cached tokens, which are also those of the first part
        return made


class RestFlight(Replay):
    """Takes the answer to the request for a stream's rest, and gives it to the broken Flight."""

    __slots__ = ("_part",)

    def __init__(
        self,
        flight: Flight,
        token_ids: TokenIds,
        body: bytes,
        on_differs: Callable[[str], None],
        on_joined: Callable[[], bool] | None = None,
    ) -> None:
        self._part = Rest(token_ids, chat=flight.spec.path.partition("?")[0].endswith(PATHS["chat"]))
        spec = msgspec.structs.replace(flight.spec, path=PATHS["completions"], body=body)
        super().__init__(flight, on_differs, comparison=self._part, spec=spec, on_joined=on_joined)

    def reports(self, usage: Usage | None, *, estimated: bool = False) -> None:
        whole = self._part.usage(usage.completion_tokens) if usage is not None else None
        super().reports(whole, estimated=estimated)
