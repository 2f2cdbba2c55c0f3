"""Limits on one request: tokens, messages, characters, choices; what is lowered to the limit and what is
refused. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from proxy.errors import Code, GatewayError
from proxy.wire import ApiRequest, RawBody, generates, prompt_of, with_fields
from proxy.wire.http import unread

_TOKEN_FIELDS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
"""All names by which an engine takes the number: vLLM the first two, llama.cpp all three."""

_RAW_TOKENS: Final = {
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
    "/invocations": ("max_tokens", "max_completion_tokens"),
    "/v1/chat/completions/batch": ("max_tokens", "max_completion_tokens"),
    "/v1/audio/transcriptions": ("max_completion_tokens",),
    "/v1/audio/translations": ("max_completion_tokens",),
}
"""Paths that are passed through and generate, and their names for it, one of which has to be given."""
_ALL_TOKENS: Final = (*_TOKEN_FIELDS, "max_output_tokens")  # looked at wherever something may be generated

_DIGITS: Final = re.compile("[0-9]{1,18}")  # of a form's number

_ITEMS: Final = {
    "chat": ("messages", "messages"),
    "completions": ("prompt", "prompts"),
    "embeddings": ("input", "inputs"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The limits; 0 is none."""

    max_tokens: int = 0
    action: Literal["lower", "refuse"] = "lower"
    messages: int = 0
    prompt_chars: int = 0
    n: int = 0
    best_of: int = 0

    def __bool__(self) -> bool:
        return any((self.max_tokens, self.messages, self.prompt_chars, self.n, self.best_of))

    def check(self, api_request: ApiRequest) -> ApiRequest:
        """The request as it may go on: what is sent and keyed from now on. Raises GatewayError 400 or 413."""
        fields = api_request.fields
        self._count("n", fields, self.n)
        self._count("best_of", fields, self.best_of)
        if self.messages or self.prompt_chars:
            prompt = prompt_of(api_request)
            name, many = _ITEMS[api_request.endpoint]
            if self.messages and prompt.items > self.messages:
                raise GatewayError(
                    Code.INVALID_VALUE,
                    f"The request has {prompt.items} {many}; at most {self.messages} are allowed.",
                    param=name,
                )
            self._chars(prompt.chars, name)
        if self.max_tokens and api_request.endpoint != "embeddings":
            echoes = api_request.endpoint == "completions"
            changed = self._capped(fields, _TOKEN_FIELDS, _TOKEN_FIELDS, least=0 if echoes else 1)
            if changed:
                return with_fields(api_request, {name: msgspec.Raw(b"%d" % cap) for name, cap in changed.items()})
        return api_request

    def check_raw(self, path: str, passed: RawBody) -> RawBody:
        """The same for a body that is passed through. Raises GatewayError 400, 413 or 415."""
        if passed.kind == "none":
            return passed
        if passed.kind == "other":
            raise unread(path)
        if self.prompt_chars:
            self._chars(sum(map(len, passed.prompt())), None)
        if not generates(path):
            return passed
        fields = self._numbers_of(passed)
        self._count("n", fields, self.n)
        self._count("best_of", fields, self.best_of)
        for name in ("messages", "input") if self.messages else ():
            items = passed.members.get(name)
            if isinstance(items, list) and len(items) > self.messages:
                raise GatewayError(
                    Code.INVALID_VALUE,
                    f"The request has {len(items)} {name}; at most {self.messages} are allowed.",
                    param=name,
                )
        if not self.max_tokens or (passed.kind == "json" and not isinstance(passed.value, dict)):
            return passed
        names = _RAW_TOKENS.get(path.rstrip("/"), ())
        return passed.with_numbers(self._capped(fields, _ALL_TOKENS, names))

    def _numbers_of(self, passed: RawBody) -> dict[str, Any]:
        if passed.form is None:
            return passed.members
        given = ((name, passed.form.text(name)) for name in (*_ALL_TOKENS, "n", "best_of"))
        return {name: int(text) if _DIGITS.fullmatch(text) else text for name, text in given if text}

    # -- inside -----------------------------------------------------------------------------------

    def _capped(
        self, fields: Mapping[str, Any], looked_at: tuple[str, ...], names: tuple[str, ...], *, least: int = 1
    ) -> dict[str, int]:
        """The members that the cap changes. One of `names` has to be there: where none is, the first. `least`: of
        `max_tokens`; elsewhere 0 is refused, for some engines take it for no limit."""
        cap, changed, named = self.max_tokens, {}, not names
        for name in looked_at:
            value = _number(name, fields)
            if value is None:
                continue
            if value == 0 and not (name == "max_tokens" and least == 0):
                raise GatewayError(Code.INVALID_VALUE, f"{name} must be at least 1.", param=name)
            named = named or name in names
            if value > cap:
                if self.action == "refuse":
                    raise GatewayError(
                        Code.INVALID_VALUE, f"{name} is {value}; at most {cap} is allowed.", param=name
                    )
                changed[name] = cap
        if not named:
            if self.action == "refuse":
                raise GatewayError(
                    Code.MISSING_FIELD, f"The field {names[0]!r} is missing; send at most {cap}.", param=names[0]
                )
            changed[names[0]] = cap
        return changed

    def _count(self, name: str, fields: Mapping[str, Any], limit: int) -> None:
        value = _number(name, fields) if limit else None
        if value is not None and value > limit:
            raise GatewayError(Code.INVALID_VALUE, f"{name} is {value}; at most {limit} is allowed.", param=name)

    def _chars(self, chars: int, param: str | None) -> None:
        if self.prompt_chars and chars > self.prompt_chars:
            raise GatewayError(
                Code.PROMPT_TOO_LARGE,
                f"The prompt has {chars} characters; at most {self.prompt_chars} are allowed.",
                param=param,
            )


def _number(name: str, fields: Mapping[str, Any]) -> int | None:
    """A count; None where it is left out. Only whole numbers pass: an engine takes "512", 512.0 and -1 (without
    end) for numbers too, and would then be asked for more than was seen here."""
    value = fields.get(name)
    if isinstance(value, msgspec.Raw):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # it is none, and refused as such
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GatewayError(Code.INVALID_VALUE, f"{name} must be a non-negative integer.", param=name)
    return value
