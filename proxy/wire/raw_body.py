"""Owns the one reading of a body that is passed through: what routing, limits, charges and checks know of it.
Must not know who asks, flights or HTTP: a media type and bytes in, one value out, which all of them use.
Called by the gateway, and by the process that reads what is large."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from proxy.errors import Code, GatewayError
from proxy.wire.document import read
from proxy.wire.http.form import Form, read_form
from proxy.wire.http.media_type import Media
from proxy.wire.loose import integer
from proxy.wire.prompt import everything, media_free, refuse_ids, refuse_template

AUDIO: Final = "/v1/audio/"
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RawBody(msgspec.Struct, frozen=True, gc=False):
    """A body as it goes up, and what it says. `value`: of JSON."""

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
        """The model that it names; None where it names none. Raises GatewayError 400 where a form's is a file."""
        if self.form is not None:
            return self.form.text("model") or None
        model = self.members.get("model")
        return model if isinstance(model, str) else None

    def number(self, name: str) -> int | None:
        """A whole number above 0 by this name, of the types that an engine takes: `"8"` and `8.0` too."""
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
        """The texts that a model may read, media apart, in order."""
        if self.form is not None:
            return self.form.texts()
        return media_free(self.value)

    def texts(self, path: str) -> list[str]:
        """Every string and every name in it. Raises GatewayError 400 for what nobody here can read."""
        if self.form is not None:
            if any(part.name != "file" for part in self.form.files) or (
                self.form.files and not path.startswith(AUDIO)
            ):
                raise GatewayError(
                    Code.INVALID_VALUE,
                    "Prompts are checked here, and files cannot be: only the field 'file' of audio may be one.",
                )
            return everything(self.form.texts())
        refuse_template(self.members)
        refuse_ids(self.members)
        return everything(self.value)

    def with_numbers(self, changed: dict[str, int]) -> RawBody:
        """The same with other numbers in these members."""
        if not changed:
            return self
        if self.form is not None:
            form = self.form
            for name, number in changed.items():
                form = read_form(form.replaced(name, b"%d" % number), form.boundary)
            return RawBody("form", form.body, None, form)
        fields = {**_FIELDS.decode(self.body), **{name: msgspec.Raw(b"%d" % n) for name, n in changed.items()}}
        return RawBody("json", msgspec.json.encode(fields), {**self.members, **changed})


COUNTS: Final = (
    "/tokenize",
    "/detokenize",
    "/score",
    "/rerank",
    "/v2/rerank",
    "/v2/embed",
    "/pooling",
    "/classify",
    "/generative_scoring",
)
"""vLLM's paths outside /v1 that only compute."""
_SILENT: Final = frozenset(
    (*COUNTS, "/version", "/tokenizer_info", "/v1/score", "/v1/rerank", "/v1/messages/count_tokens")
)
_JSON_ONLY: Final = frozenset(
    (*COUNTS, "/v1/score", "/v1/rerank", "/v1/systemone", "/v1/audio/speech", "/invocations")
)
_JSON_UNDER: Final = ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")


def generates(path: str) -> bool:
    """Whether an answer of this path may hold generated text: everything that is not known to hold none."""
    return path.rstrip("/") not in _SILENT


def takes_json_only(path: str) -> bool:
    """Whether it is a path of vLLM's that takes no body but JSON."""
    return path.startswith(_JSON_UNDER) or path.rstrip("/") in _JSON_ONLY


NONE: Final = RawBody("none")


def read_passed(media: Media | None, body: bytes) -> RawBody:
    """Read a body, of the type that its head told. Raises GatewayError 400 where readers could differ about it."""
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
            "The field 'model' has spaces around it, or characters that do not print.",
            param="model",
        )
