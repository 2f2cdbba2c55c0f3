"""Pictures in prompts: generated PNGs of a given size, as `data:` URLs, each of another content."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from typing import Any, Final

import msgspec

from corpus.draw import Draw
from loadgen.errors import WorkloadError
from loadgen.workload.model import FollowUp, Options, Prompt, Source

TILE: Final = 32  # pixels of a square of one colour
LARGEST: Final = 4096  # pixels of a side


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of WIDTHxHEIGHT. Raises WorkloadError."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip())
    width, height = (int(match[1]), int(match[2])) if match is not None else (0, 0)
    if not (1 <= width <= LARGEST and 1 <= height <= LARGEST):
        raise WorkloadError(
            f"--image-size {text!r}: give WIDTHxHEIGHT, 1 to {LARGEST} pixels each, such as 512x512"
        )
    return width, height


def png(width: int, height: int, draw: Draw) -> bytes:
    """Squares of random colours, 8-bit RGB."""
    rows = bytearray()
    for top in range(0, height, TILE):
        colours = [bytes((draw.below(256), draw.below(256), draw.below(256))) for _ in range(0, width, TILE)]
        row = b"\0" + b"".join(colour * TILE for colour in colours)[: 3 * width]  # 0: no filter
        rows += row * min(TILE, height - top)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 1)), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class WithImages:
    """A dataset whose prompts end with pictures. Equal prompts have equal pictures."""

    def __init__(self, source: Source, options: Options) -> None:
        self.name = f"{source.name} with {options.images} images of {options.image_size}"
        self.distinct = source.distinct
        self._source = source
        self._options = options
        self._size = parse_size(options.image_size)

    def schedule(self) -> list[tuple[float, int]] | None:
        return self._source.schedule()

    def prompt(self, number: int) -> Prompt:
        return self._with_images(self._source.prompt(number))

    def then(self, number: int) -> tuple[FollowUp, ...]:
        return tuple(self._later(follow_up) for follow_up in self._source.then(number))

    def _later(self, follow_up: FollowUp) -> FollowUp:
        prompt = follow_up.prompt
        return msgspec.structs.replace(follow_up, prompt=lambda: self._with_images(prompt()))

    def _with_images(self, prompt: Prompt) -> Prompt:
        *before, last = prompt.fields["messages"]
        content = last.get("content") or ""
        parts: list[dict[str, Any]] = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for number in range(self._options.images):
            picture = png(*self._size, Draw(self._options.seed, "image", prompt.id, number))
            url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            parts = [*parts, {"type": "image_url", "image_url": {"url": url}}]
        fields = {**prompt.fields, "messages": [*before, {**last, "content": parts}]}
        return Prompt(prompt.id, prompt.endpoint, fields, prompt.expected_input)


class Rerank:
    """A query and documents for each request, from a dataset of texts without end."""

    distinct: int | None = None

    def __init__(self, source: Source, options: Options) -> None:
        if source.distinct is not None:
            raise WorkloadError(
                f"--endpoint rerank cannot use {source.name}: give corpus, random or prefix_repetition, or a "
                "custom file whose lines have query and documents"
            )
        self.name = f"{source.name}, a query and {options.rerank_documents} documents each"
        self._source = source
        self._documents = options.rerank_documents

    def schedule(self) -> list[tuple[float, int]] | None:
        return None

    def then(self, number: int) -> tuple[FollowUp, ...]:
        return ()

    def prompt(self, number: int) -> Prompt:
        first = number * (self._documents + 1)
        prompts = [self._source.prompt(place) for place in range(first, first + self._documents + 1)]
        query, *documents = (prompt.fields["input"] for prompt in prompts)
        expected = [prompt.expected_input or 0 for prompt in prompts]
        fields = {"query": query, "documents": documents}
        return Prompt(f"rerank/{prompts[0].id}", "embeddings", fields, sum(expected))
