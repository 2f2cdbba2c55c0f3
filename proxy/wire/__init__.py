"""Formats: bytes into meaning and back, without I/O.

A reader meets, in this order:

- `http` reads a request's target, media type and form; `document.read` reads JSON so that no two readers can
  differ.
- An `ApiRequest` is one decoded request of OpenAI's API; `RawBody` is a body of any other endpoint, passed
  through.
- `prompt` finds the texts in either; `media`, `loose` and `prompt_logprobs` answer single questions about it.
- `Framer` cuts a byte stream into events of Server-Sent Events. A frame is one event's raw bytes; a chunk is a
  frame in HTTP/1.1's chunked coding.
- `frames` reads frames: content, `Usage`, errors. `FrameTemplate` recognises a frame that differs from an
  earlier one only in its text; `UsageStripper` hides the usage that a client did not ask for.
- `whole` decides whether an answer is complete, and names the `Lack` where it is not.
- `event_apis` reads the streams of Anthropic's Messages and OpenAI's Responses.
- `fold` turns a finished stream into one JSON body.
- `StreamSplit` and `split_body` take merged choices apart, `embeddings` arrays of inputs; `shares` divides a
  count of tokens among them.

This room imports no asyncio, no HTTP server and no socket. The load generator uses it too.
"""

from proxy.wire.choices import Part, StreamSplit, split_body
from proxy.wire.document import long_number, read
from proxy.wire.embeddings import (
    LARGE,
    SLICE,
    Inputs,
    Unsplittable,
    Vector,
    array_body,
    embeds_bytes,
    embeds_chat,
    envelope_of,
    inputs_of,
    put_together,
    take_apart,
)
from proxy.wire.frames import (
    FINISH,
    MAX_TOKENS,
    FrameTemplate,
    Tokens,
    Usage,
    UsageStripper,
    fault_of,
    has_content,
    is_error,
    usage_of,
)
from proxy.wire.loose import integer
from proxy.wire.media import refers
from proxy.wire.openai import (
    PATHS,
    PROMPT_FIELD,
    REQUESTS,
    ApiRequest,
    Endpoint,
    Large,
    decode,
    renamed,
    salted,
    stream_extras,
    with_fields,
    with_usage,
    without_salt,
)
from proxy.wire.prompt import (
    BYTES_A_TOKEN,
    NO_TEXT_FIELDS,
    everything,
    joined,
    prompt_in,
    prompt_of,
    refuse_ids,
    refuse_template,
    strings,
)
from proxy.wire.prompt_logprobs import outgrows
from proxy.wire.raw_body import (
    NO_FACTS,
    NONE,
    PASSED_PATHS,
    REPEATABLE,
    RawBody,
    RawFacts,
    generates,
    read_passed,
    takes_json_only,
)
from proxy.wire.shares import shares_of
from proxy.wire.sse import (
    DONE,
    KEEP_ALIVE,
    LAST_CHUNK,
    SIZE_LINES,
    SIZES,
    ChunkCheck,
    Framer,
    chunk,
    data_of,
    encode,
    field_of,
    is_comment,
    is_done,
    unchunks,
    without_ids,
)
from proxy.wire.structs import settable
from proxy.wire.whole import (
    REASONS,
    UNFINISHED,
    Lack,
    asked_of,
    endings,
    lack_of,
    note,
    read_body,
    take_event,
    whole_body,
    whole_streams,
)

__all__ = [
    "BYTES_A_TOKEN",
    "DONE",
    "FINISH",
    "KEEP_ALIVE",
    "LARGE",
    "LAST_CHUNK",
    "MAX_TOKENS",
    "NONE",
    "NO_FACTS",
    "NO_TEXT_FIELDS",
    "PASSED_PATHS",
    "PATHS",
    "PROMPT_FIELD",
    "REASONS",
    "REPEATABLE",
    "REQUESTS",
    "SIZES",
    "SIZE_LINES",
    "SLICE",
    "UNFINISHED",
    "ApiRequest",
    "ChunkCheck",
    "Endpoint",
    "FrameTemplate",
    "Framer",
    "Inputs",
    "Lack",
    "Large",
    "Part",
    "RawBody",
    "RawFacts",
    "StreamSplit",
    "Tokens",
    "Unsplittable",
    "Usage",
    "UsageStripper",
    "Vector",
    "array_body",
    "asked_of",
    "chunk",
    "data_of",
    "decode",
    "embeds_bytes",
    "embeds_chat",
    "encode",
    "endings",
    "envelope_of",
    "everything",
    "fault_of",
    "field_of",
    "generates",
    "has_content",
    "inputs_of",
    "integer",
    "is_comment",
    "is_done",
    "is_error",
    "joined",
    "lack_of",
    "long_number",
    "note",
    "outgrows",
    "prompt_in",
    "prompt_of",
    "put_together",
    "read",
    "read_body",
    "read_passed",
    "refers",
    "refuse_ids",
    "refuse_template",
    "renamed",
    "salted",
    "settable",
    "shares_of",
    "split_body",
    "stream_extras",
    "strings",
    "take_apart",
    "take_event",
    "takes_json_only",
    "unchunks",
    "usage_of",
    "whole_body",
    "whole_streams",
    "with_fields",
    "with_usage",
    "without_ids",
    "without_salt",
]
