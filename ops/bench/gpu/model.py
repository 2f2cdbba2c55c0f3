"""A model folder made locally, so that nothing has to be downloaded: the configuration of a real shape, for dummy
weights, and a byte-level BPE tokenizer made of a word list."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

SPECIAL: Final = ("<|begin|>", "<|end|>")
TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CONTEXT: Final = 8192  # tokens


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
    }  # fmt: skip


SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "8b": _llama(4096, 14336, 32, 32, 8, 128256),  # Llama 3.1 8B
    "1b": _llama(2048, 8192, 16, 32, 8, 128256),  # Llama 3.2 1B
    "tiny": _llama(256, 512, 2, 4, 2, 8192),  # for a CPU
}


def write_model(folder: Path, shape: str, words: Iterable[str]) -> None:
    """Write the model into `folder`, for `--load-format dummy`. `words`: what the tokenizer has tokens for."""
    folder.mkdir(parents=True)
    config = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(words, config["vocab_size"])))
    names = dict(zip(("bos_token", "eos_token"), SPECIAL, strict=True))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))


def tokenizer(words: Iterable[str], size: int) -> dict[str, Any]:
    """A tokenizer of the `tokenizers` library with exactly `size` tokens: bytes, the words with and without a
    space before them, and fillers, so that every id which dummy weights generate has a text."""
    letters = _letters()
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    merges = []
    for word in words:
        for text in (f" {word}", word):
            first, *rest = [letters[byte] for byte in text.encode()]
            for letter in rest:
                if first + letter not in vocabulary and len(vocabulary) < size - len(SPECIAL):
                    vocabulary[first + letter] = len(vocabulary)
                    merges.append([first, letter])
                first += letter
    for filler in _fillers(letters[ord(" ")]):
        if len(vocabulary) == size - len(SPECIAL):
            break
        vocabulary.setdefault(filler, len(vocabulary))
    vocabulary |= {name: size - len(SPECIAL) + n for n, name in enumerate(SPECIAL)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": vocabulary[name], "content": name, **plain} for name in SPECIAL],
        "pre_tokenizer": split,
        "decoder": split,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _fillers(space: str) -> Iterator[str]:
    number = 0
    while True:
        yield f"{space}filler{number}"
        number += 1


def _letters() -> list[str]:
    """The letter of each byte, as in GPT-2: printable Latin-1 is its own, the others start at U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
