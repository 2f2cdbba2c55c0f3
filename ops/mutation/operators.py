"""The mutation operators: Cosmic Ray's, grouped in families of which one is drawn, and six that it lacks. An
operator says where in a parso tree it applies, and applies there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from cosmic_ray import plugins
from cosmic_ray.ast import get_ast
from cosmic_ray.operators.operator import Example, Operator
from parso.tree import NodeOrLeaf

Position = tuple[tuple[int, int], tuple[int, int]]


def where(node: NodeOrLeaf) -> Position:
    return node.start_pos, node.end_pos


class _Condition(Operator):  # type: ignore[misc]  # Cosmic Ray has no types
    """A condition with a constant value."""

    value: str

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type in ("if_stmt", "while_stmt"):
            for index, child in enumerate(node.children):
                if getattr(child, "value", None) in ("if", "elif", "while"):
                    yield where(node.children[index + 1])
        elif node.type in ("ternary", "test") and len(node.children) == 5:
            yield where(node.children[2])

    def mutate(self, node: Any, index: int) -> Any:
        position = list(self.mutation_positions(node))[index]
        for at, child in enumerate(node.children):
            if where(child) == position:
                node.children[at] = get_ast(f" {self.value}")
        return node


class ConditionTrue(_Condition):
    value = "True"

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return (Example("if x: pass", "if True: pass"), Example("a = x if y else z", "a = x if True else z"))


class ConditionFalse(_Condition):
    value = "False"

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return (Example("if x: pass\nelif y: pass", "if x: pass\nelif False: pass", occurrence=1),)


class DropStatement(Operator):  # type: ignore[misc]
    """Replaces a statement with an effect by `pass`: a call, an assignment to an attribute or item, an augmented
    assignment, a raise, a bare return."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type == "simple_stmt" and self._acts(node.children[0]):
            yield where(node.children[0])

    @staticmethod
    def _acts(statement: Any) -> bool:
        if statement.type == "atom_expr" and statement.children[0].type == "keyword":  # await x()
            return True
        if statement.type in ("atom_expr", "power"):
            return bool(
                statement.children[-1].type == "trailer" and statement.children[-1].children[0].value == "("
            )
        if statement.type in ("await_expr", "raise_stmt", "del_stmt"):
            return True
        if statement.type == "keyword":
            return bool(statement.value in ("return", "raise"))
        if statement.type != "expr_stmt" or statement.children[1].type == "annassign":
            return False
        if statement.children[1].type == "operator" and statement.children[1].value == "=":
            return bool(statement.children[0].type in ("atom_expr", "power"))
        return True

    def mutate(self, node: Any, index: int) -> Any:
        node.children[0] = get_ast(node.children[0].get_first_leaf().prefix + "pass")
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return (
            Example("f(x)\n", "pass\n"),
            Example("self.x = 1\n", "pass\n"),
            Example("x += 1\n", "pass\n"),
            Example("raise ValueError\n", "pass\n"),
        )


class SwapIn(Operator):  # type: ignore[misc]
    """`in` for `not in`, and the reverse."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type == "comparison":
            yield from (where(child) for child in node.children[1::2] if _word(child) in ("in", "notin"))

    def mutate(self, node: Any, index: int) -> Any:
        found = [at for at in range(1, len(node.children), 2) if _word(node.children[at]) in ("in", "notin")]
        at = found[index]
        node.children[at] = get_ast(" not in" if _word(node.children[at]) == "in" else " in")
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return (Example("x in y", "x not in y"), Example("x not in y", "x in y"))


class SwapEnds(Operator):  # type: ignore[misc]
    """`min` for `max`, `any` for `all`, and the reverse."""

    _OTHER: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type in ("atom_expr", "power") and getattr(node.children[0], "value", None) in self._OTHER:
            yield where(node.children[0])

    def mutate(self, node: Any, index: int) -> Any:
        node.children[0].value = self._OTHER[node.children[0].value]
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return (Example("min(x, y)", "max(x, y)"), Example("all(x)", "any(x)"))


class CatchNothing(Operator):  # type: ignore[misc]
    """Catches another exception, which nothing raises. Cosmic Ray's operator does not handle dotted names."""

    OTHER: Final = "StopAsyncIteration"

    @staticmethod
    def _caught(node: Any) -> list[tuple[Any, int]]:
        """Each exception of a clause: its list of nodes, and its index there."""
        if node.type != "except_clause":
            return []
        caught = node.children[1]
        if caught.type != "atom" or caught.children[0].value != "(":
            return [(node.children, 1)]
        if getattr(caught.children[1], "type", "") != "testlist_comp":
            return [(caught.children, 1)]
        return [(caught.children[1].children, at) for at in range(0, len(caught.children[1].children), 2)]

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        return (where(children[at]) for children, at in self._caught(node))

    def mutate(self, node: Any, index: int) -> Any:
        children, at = self._caught(node)[index]
        children[at] = get_ast(children[at].get_first_leaf().prefix + self.OTHER)
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        try_one = "try: f()\nexcept {}: pass\n"
        return (
            Example(try_one.format("a.B"), try_one.format(cls.OTHER)),
            Example(try_one.format("(A, b.C) as e"), try_one.format(f"(A, {cls.OTHER}) as e"), occurrence=1),
        )


def _word(node: Any) -> str:
    return re.sub(r"\s", "", node.get_code())


def _comparisons(*pairs: tuple[str, str]) -> list[str]:
    return [f"core/ReplaceComparisonOperator_{old}_{new}" for old, new in pairs]


def _binaries(*pairs: tuple[str, str]) -> list[str]:
    return [f"core/ReplaceBinaryOperator_{old}_{new}" for old, new in pairs]


FAMILIES: Final[dict[str, Sequence[str]]] = {
    "bound": _comparisons(("Lt", "LtE"), ("LtE", "Lt"), ("Gt", "GtE"), ("GtE", "Gt")),
    "comparison": [
        *_comparisons(
            ("Lt", "GtE"), ("LtE", "Gt"), ("Gt", "LtE"), ("GtE", "Lt"), ("Eq", "NotEq"), ("NotEq", "Eq")
        ),
        *_comparisons(("Is", "IsNot"), ("IsNot", "Is")),
        "ops/SwapIn",
    ],
    "condition": [
        "ops/ConditionTrue",
        "ops/ConditionFalse",
        "core/AddNot",
        "core/ReplaceUnaryOperator_Delete_Not",
    ],
    "and-or": ["core/ReplaceAndWithOr", "core/ReplaceOrWithAnd"],
    "statement": ["ops/DropStatement"],
    "constant": ["core/ReplaceTrueWithFalse", "core/ReplaceFalseWithTrue", "core/NumberReplacer"],
    "arithmetic": [
        *_binaries(("Add", "Sub"), ("Sub", "Add"), ("Mul", "Div"), ("Div", "Mul"), ("FloorDiv", "Mul")),
        *_binaries(("Mod", "Mul"), ("BitOr", "BitAnd"), ("BitAnd", "BitOr"), ("LShift", "RShift")),
        "core/ReplaceUnaryOperator_USub_UAdd",
        "ops/SwapEnds",
    ],
    "control": [
        "ops/CatchNothing",
        "core/ReplaceBreakWithContinue",
        "core/ReplaceContinueWithBreak",
        "core/ZeroIterationForLoop",
    ],
}
OWN: Final = {
    f"ops/{o.__name__}": o for o in (ConditionTrue, ConditionFalse, DropStatement, SwapIn, SwapEnds, CatchNothing)
}


def made(name: str) -> Operator:
    return (OWN[name] if name in OWN else plugins.get_operator(name))()


def every() -> Iterable[tuple[str, str]]:
    """The family and name of each operator."""
    return ((family, name) for family, names in FAMILIES.items() for name in names)
