"""Names of models as they are given: tables and texts, what they lead to, and what is refused in which words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import conflicts, load, model_names, settings_as_toml
from proxy.config.model_names import MOST_MODELS, MOST_NAMES, read_aliases, read_standbys
from proxy.config.settings import Settings
from proxy.errors import SettingsError

FILE = """
[models]
gpt-4o = "org/llama:8b"
chat = {a = 95, b = 5}
deep = {chat = 1, c = 1}
[model_fallbacks]
a = ["b", "c"]
b = "a"
"""


def read(text: str, *flags: str) -> Settings:
    return load(["--config", "x", *flags], {}, lambda path: text)


def test_a_file_s_tables_and_what_they_lead_to() -> None:
    settings = read(FILE)
    names = model_names(settings.models, settings.model_fallbacks)
    assert dict(names.aliases) == {
        "gpt-4o": (("org/llama:8b", 1.0),),
        "chat": (("a", 0.95), ("b", 1.0)),
        "deep": (("a", 0.475), ("b", 0.5), ("c", 1.0)),
    }
    assert dict(names.standbys) == {"a": ("b", "c"), "b": ("a",)}
    assert [names.model_of("deep", place) for place in (0.0, 0.474, 0.48, 0.5, 0.999)] == ["a", "a", "b", "c", "c"]
    assert read(settings_as_toml(settings)) == settings
    assert conflicts(settings) == []


def test_flags_take_precedence_over_the_file() -> None:
    flags = ("--model-alias", "x=a,y=b", "--model-alias", "z=x", "--model-fallback", "a=b", "--model-fallback=a=c")
    settings = read(FILE, *flags)
    assert settings.models == (("x", (("a", 1.0),)), ("y", (("b", 1.0),)), ("z", (("x", 1.0),)))
    assert settings.model_fallbacks == (("a", ("b", "c")),)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=MOST_MODELS).filter(any), st.floats(0, 1, exclude_max=True)
)
def test_each_model_has_its_part_and_one_with_weight_0_none(weights: list[int], place: float) -> None:
    aliases = read_aliases({"x": {f"m{n}": weight for n, weight in enumerate(weights)}})
    names = model_names(aliases, ())
    number = int(names.model_of("x", place)[1:])
    total = sum(weights)
    assert weights[number] > 0
    assert sum(weights[:number]) / total - 1e-9 <= place <= sum(weights[: number + 1]) / total + 1e-9


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"a": "b", "b": "a"}, "does not end: a -> b -> a"),
        ({"a": "a"}, "does not end: a -> a"),
        ({"a": {"b": 1, "c": 1}, "c": "a"}, "does not end: a -> c -> a"),
        ({f"n{n}": f"n{n + 1}" for n in range(MOST_MODELS + 1)}, "does not end"),
        (
            {f"n{n}": {f"n{n + 1}": 1, f"m{n}": 1} for n in range(MOST_MODELS - 1)} | {"x": {"n0": 1, "n1": 1}},
            "16 models",
        ),
        ({"a": {}}, "must be names with their models"),
        ({"a": 5}, "must be names with their models"),
        ({"a": {"b": 0}}, "a weight above 0"),
        ({"a": {"b": -1}}, "weights from 0"),
        ({"a": {"b": True}}, "weights from 0"),
        ({"a": {"b": float("nan")}}, "weights from 0"),
        ({"a": {"b": "5"}}, "weights from 0"),
        ({"a b": "c"}, "1 to 256 printable"),
        ({"a": "c\r\nx: y"}, "1 to 256 printable"),
        ({"ä": "c"}, "1 to 256 printable"),
        ({"x" * 257: "c"}, "1 to 256 printable"),
        ({f"n{n}": "m" for n in range(MOST_NAMES + 1)}, "at most 1000 names"),
        ("a=b a=c", "each name once"),
        ("a", "NAME=MODEL"),
        ("=b", "1 to 256 printable"),
        ("a=", "1 to 256 printable"),
        (5, "must be names"),
        ([5], "must be names"),
    ],
)
def test_wrong_aliases_are_refused_in_words(raw: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_aliases(raw)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"a": ["a"]}, "other models, each once"),
        ({"a": ["b", "b"]}, "other models, each once"),
        ({"a": list("bcdef")}, "one to 4"),
        ({"a": []}, "must be models with"),
        ({"a": [5]}, "must be models with"),
        ({"a": {"b": 1}}, "must be models with"),
        ({f"n{n}": "m" for n in range(MOST_NAMES + 1)}, "at most 1000 models"),
        ("a=a", "other models, each once"),
        (5, "must be models with"),
    ],
)
def test_wrong_fallbacks_are_refused_in_words(raw: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_standbys(raw)


def test_a_fallback_names_no_alias() -> None:
    settings = Settings(models=read_aliases("x=a"), model_fallbacks=read_standbys("x=b b=x"))
    (problem,) = conflicts(settings)
    assert problem.startswith("model_fallbacks names 'x', which is an alias in models")


def test_an_error_names_its_source() -> None:
    with pytest.raises(SettingsError, match=r"file x: models = a table: must lead to models.*b -> a -> b"):
        read('[models]\nb = "a"\na = "b"\n')
