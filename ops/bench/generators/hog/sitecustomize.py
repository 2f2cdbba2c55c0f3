"""Slows down the event loops of any Python program that has this folder on its PYTHONPATH (Python imports
`sitecustomize` at start). HOG is `MS WHERE`: milliseconds per iteration, and `main` or `child`."""

import os


def _hog(burn_s: float, where: str) -> None:
    """Every loop that `asyncio.run` starts is busy for `burn_s` in each iteration.

    `where`: `main`, or `child` for a program whose worker processes send (then only they are slowed down).
    """
    import asyncio
    import multiprocessing
    import time
    from typing import Any

    run = asyncio.Runner.run

    def hogged(self: asyncio.Runner, coro: Any, **more: Any) -> Any:
        if (multiprocessing.parent_process() is not None) != (where == "child"):
            return run(self, coro, **more)
        loop = self.get_loop()

        def burn() -> None:
            until = time.perf_counter() + burn_s
            while time.perf_counter() < until:
                pass
            loop.call_soon(burn)

        loop.call_soon(burn)
        return run(self, coro, **more)

    asyncio.Runner.run = hogged  # type: ignore[method-assign]


if os.environ.get("HOG"):
    _burn, _where = os.environ["HOG"].split()
    _hog(float(_burn) / 1e3, _where)
