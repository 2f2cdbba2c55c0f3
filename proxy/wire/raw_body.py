"""The one reading of a body that is passed through: routing, limits, charges and checks all use this value."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import msgspec

from proxy.errors import Code, GatewayError
from proxy.wire.document import read
from proxy.wire.http.form import Form, read_form
from proxy.wire.http.media_type import Media
from proxy.wire.loose import boolean, integer
from proxy.wire.openai import salt_of
from proxy.wire.prompt import everything, media_free, refuse_ids, refuse_template

AUDIO: Final = "/v1/audio/"
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RawFacts(msgspec.Struct, frozen=True, gc=False):
    """What decides how the answer to a passed-through request is read, and which engine gets it."""

    stream: bool = False
    previous: str | None = None  # the id of the response that it continues
    names_itself: bool = False  # the client chooses the id of its response, as vLLM allows
    affinity: int = 0  # requests with the same number go to the same engine; 0: to any


NO_FACTS: Final = RawFacts()


class RawBody(msgspec.Struct, frozen=True, gc=False):
    """A body as it goes to the engine, and its content. `value`: decoded JSON."""

    kind: Literal["none", "json", "form", "other"]
    body: bytes = b""
    value: Any = None
    form: Form | None = None

    @property
    def members(self) -> dict[str, Any]:
        """The top-level members of a JSON object."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def model(self) -> str | None:
        """The model it names; None: none. Raises GatewayError 400 where a form's `model` is a file."""
        if self.form is not None:
            return self.form.text("model") or None
        model = self.members.get("model")
        return model if isinstance(model, str) else None

    def facts(self, affinity: int = 0) -> RawFacts:
        members = self.members
        previous = members.get("previous_response_id")
        return RawFacts(
            boolean(members.get("stream")) is True,
            previous if isinstance(previous, str) else None,
            members.get("request_id") is not None,
            affinity,
        )

    def number(self, name: str) -> int | None:
        """The positive integer of this name, in the types that an engine accepts: `"8"` and `8.0` too."""
        value: Any = self.members.get(name) if self.form is None else self.form.text(name)
        if isinstance(value, str) and self.form is not None and value.isascii() and value.isdecimal():
            value = int(value[:12])
        if type(value) is not int:
            value = None if isinstance(value, bool) else integer(value)
        return value if value is not None and value > 0 else None

    @property
    def conversations(self) -> int:
        """How many there are in a batch; 1 elsewhere."""
        messages = self.members.get("messages")
        if not isinstance(messages, list) or not all(isinstance(item, list) for item in messages):
            return 1
        return max(1, len(messages))

    def prompt(self) -> list[str]:
        """The texts that a model may read, without media, in order."""
        if self.form is not None:
            return self.form.texts()
        return media_free(self.value)

    def texts(self, path: str) -> list[str]:
        """All strings and member names. Raises GatewayError 400 for content that cannot be checked."""
        if self.form is not None:
            if any(part.name != "file" for part in self.form.files) or (
                self.form.files and not path.startswith(AUDIO)
            ):
                raise GatewayError(
                    Code.INVALID_VALUE,
                    "Prompts are checked here, and files cannot be checked: only 'file' of audio may be a file.",
                )
            return everything(self.form.texts())
        refuse_template(self.members)
        refuse_ids(self.members)
        return everything(self.value)

    def with_numbers(self, changed: dict[str, int]) -> RawBody:
        """A copy with these members changed."""
        if not changed:
            return self
        if self.form is not None:
            form = self.form
            for name, number in changed.items():
                form = read_form(form.replaced(name, b"%d" % number), form.boundary)
            return RawBody("form", form.body, None, form)
        fields = {**_FIELDS.decode(self.body), **{name: msgspec.Raw(b"%d" % n) for name, n in changed.items()}}
        return RawBody("json", msgspec.json.encode(fields), {**self.members, **changed})

    def with_model(self, model: str) -> RawBody:
        """A copy for another model."""
        if self.form is not None:
            form = read_form(self.form.replaced("model", model.encode()), self.form.boundary)
            return RawBody("form", form.body, None, form)
        fields = {**_FIELDS.decode(self.body), "model": msgspec.Raw(msgspec.json.encode(model))}
        return RawBody("json", msgspec.json.encode(fields), {**self.members, "model": model})

    def without_salt(self) -> tuple[RawBody, str | None]:
        """A copy without `cache_salt`, and that; None: it has none. Raises GatewayError 400 for one that no engine
        takes."""
        if "cache_salt" not in self.members:
            return self, None
        members = {name: value for name, value in self.members.items() if name != "cache_salt"}
        fields = _FIELDS.decode(self.body)
        del fields["cache_salt"]
        return RawBody("json", msgspec.json.encode(fields), members), salt_of(self.members["cache_salt"])

    def takes_salt(self, path: str) -> bool:
        """Whether an engine may act on a `cache_salt` in it."""
        known = path.rstrip("/") in _SALTED or "cache_salt" in self.members
        return known and isinstance(self.value, dict)


class PassedPath(NamedTuple):
    """What is known of a path of vLLM that is passed through. A path that is not known has none of it."""

    repeatable: bool = False  # a POST only computes, and may be sent twice
    silent: bool = False  # its answer holds no generated text
    json_only: bool = False  # it accepts no other media type
    salted: bool = False  # its requests may have a `cache_salt`, by the protocols of vLLM 0.32 and 0.33


_COUNTS: Final = PassedPath(repeatable=True, silent=True, json_only=True)
_SCORES: Final = _COUNTS._replace(salted=True)
PASSED_PATHS: Final = {
    "/tokenize": _COUNTS,
    "/detokenize": _COUNTS,
    "/v2/embed": _COUNTS,
    "/v1/messages/count_tokens": _COUNTS,
    "/score": _SCORES,
    "/v1/score": _SCORES,
    "/rerank": _SCORES,
    "/v1/rerank": _SCORES,
    "/v2/rerank": _SCORES,
    "/pooling": _SCORES,
    "/classify": _SCORES,
    "/generative_scoring": _SCORES,
    "/v1/embeddings": PassedPath(repeatable=True, json_only=True, salted=True),
    "/v1/messages": PassedPath(repeatable=True, json_only=True, salted=True),
    "/v1/responses": PassedPath(json_only=True, salted=True),
    "/v1/chat/completions/batch": PassedPath(json_only=True, salted=True),
    "/v1/systemone": PassedPath(json_only=True, salted=True),
    "/v1/decisions": PassedPath(json_only=True, salted=True),
    "/v1/audio/speech": PassedPath(json_only=True),
    "/invocations": PassedPath(json_only=True, salted=True),
    "/version": PassedPath(silent=True),
    "/tokenizer_info": PassedPath(silent=True),
}
"""Those outside /v1 are offered only where they are listed here."""
REPEATABLE: Final = frozenset(path for path, known in PASSED_PATHS.items() if known.repeatable)
_SALTED: Final = frozenset(path for path, known in PASSED_PATHS.items() if known.salted)
_SILENT: Final = frozenset(path for path, known in PASSED_PATHS.items() if known.silent)
_JSON_ONLY: Final = frozenset(path for path, known in PASSED_PATHS.items() if known.json_only)
_JSON_UNDER: Final = ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")


def generates(path: str) -> bool:
    """Whether an answer of this path may hold generated text: true unless it is known not to."""
    return path.rstrip("/") not in _SILENT


def takes_json_only(path: str) -> bool:
    """Whether it is a path of vLLM that accepts only JSON."""
    return path.startswith(_JSON_UNDER) or path.rstrip("/") in _JSON_ONLY


NONE: Final = RawBody("none")


def read_passed(media: Media | None, body: bytes) -> RawBody:
    """Read a body of the media type in its head. Raises GatewayError 400 where readers could differ."""
    if media is None or not body:
        return NONE
    if media.kind == "json":
        return RawBody("json", body, read(body))
    if media.kind == "form":
        form = read_form(body, media.boundary)
        _check_model(form)
        return RawBody("form", body, None, form)
    return RawBody("other", body)


def _check_model(form: Form) -> None:
    model = form.text("model")
    if model is not None and (model != model.strip() or not model.isprintable()):
        raise GatewayError(
            Code.INVALID_VALUE,
            "The field 'model' has surrounding spaces or unprintable characters.",
            param="model",
        )
