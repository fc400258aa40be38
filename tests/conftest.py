"""For all tests: an example of a property may take as long as the machine needs for it; what has to
be fast is measured by tests of its own. And none waits forever.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

EARLIER = 0.9  # of pytest-timeout's time, whose alarm a task that is just running may swallow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each asynchronous test is ended from within, so that what it holds is closed."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            whole_s = float(marker.args[0] if marker else item.config.getini("timeout"))
            item.obj = _within(EARLIER * whole_s, item.obj)


def _within(seconds: float, test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(seconds):
            await test(*args, **kwargs)

    return bounded
