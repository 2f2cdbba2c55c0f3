"""A weighted line through batches of requests, and its covariance for neighbours that depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

Matrix = list[list[float]]


class Row(NamedTuple):
    """A batch: what was measured in it, by what it is explained, its number of requests and its series (stage)."""

    value: float
    terms: tuple[float, ...]
    weight: float
    series: int


class Line(NamedTuple):
    """value = coefficients · terms."""

    coefficients: list[float]
    covariance: Matrix
    spare: int  # rows beyond the number of coefficients


def fitted(rows: Sequence[Row], lags: int = 1) -> Line | None:
    """Weighted least squares; None if the rows do not determine the coefficients.

    The covariance is Newey and West's (1987) with so many lags inside a series, so that neither unequal variances
    nor the dependence of neighbouring batches makes it too small.
    """
    size = len(rows[0].terms) if rows else 0
    spare = len(rows) - size
    if spare < 1:
        return None
    normal = [
        [sum(row.weight * row.terms[i] * row.terms[j] for row in rows) for j in range(size)] for i in range(size)
    ]
    inverse = inverted(normal)
    if inverse is None:
        return None
    right = [sum(row.weight * row.terms[i] * row.value for row in rows) for i in range(size)]
    coefficients = [sum(inverse[i][j] * right[j] for j in range(size)) for i in range(size)]
    left = [row.value - sum(c * term for c, term in zip(coefficients, row.terms, strict=True)) for row in rows]
    scores = [[row.weight * e * term for term in row.terms] for row, e in zip(rows, left, strict=True)]
    middle = [[sum(score[i] * score[j] for score in scores) for j in range(size)] for i in range(size)]
    for lag in range(1, lags + 1):
        share = 1 - lag / (lags + 1)
        for before, after in zip(range(len(rows) - lag), range(lag, len(rows)), strict=True):
            if rows[before].series == rows[after].series:
                for i in range(size):
                    for j in range(size):
                        cross = scores[before][i] * scores[after][j] + scores[after][i] * scores[before][j]
                        middle[i][j] += share * cross
    scale = len(rows) / spare
    covariance = [[scale * value for value in line] for line in _product(_product(inverse, middle), inverse)]
    return Line(coefficients, covariance, spare)


def student(degrees: int) -> float:
    """The 97.5 % point of Student's t, to 1.5 % from 5 degrees on (Hill's expansion)."""
    z, n = 1.959964, max(degrees, 5)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n * n)


def wilson(hits: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share, for any effective number of values above 0."""
    share, square = hits / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z * sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def inverted(matrix: Matrix) -> Matrix | None:
    """By Gauss and Jordan with pivots; None for a singular one."""
    size = len(matrix)
    rows = [[*line, *(1.0 if i == j else 0.0 for j in range(size))] for i, line in enumerate(matrix)]
    largest = max((abs(value) for line in matrix for value in line), default=0.0)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        if abs(rows[pivot][i]) <= 1e-12 * largest:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [value - rows[k][i] * other for value, other in zip(rows[k], rows[i], strict=True)]
    return [line[size:] for line in rows]


def _product(a: Matrix, b: Matrix) -> Matrix:
    return [
        [sum(x * y for x, y in zip(line, column, strict=True)) for column in zip(*b, strict=True)] for line in a
    ]
