"""The search for the highest load that meets objectives: which stage comes next, and what all stages say."""

from loadgen.analysis.search.answer import Found, Plan
from loadgen.analysis.search.search import Search
from loadgen.analysis.search.stage import Stage

__all__ = ["Found", "Plan", "Search", "Stage"]
