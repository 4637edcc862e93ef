"""How much of the server one caller may take at a time, so that there is always some left for the others."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

MAX_REQUESTS = 64
"""Requests and streams of one caller under way at once. A browser opens 6 connections to a server, a script
that works on a dozen threads a dozen streams."""


class TooManyRequestsError(Exception):
    """Too many requests of yours are under way; end some, or wait."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class Load:
    """Counts what is under way in this process, by caller."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def one_more(self, caller: str) -> Iterator[None]:
        """Count a request of `caller` while it is under way.

        Raises:
            TooManyRequestsError: if they have as many as they may.
        """
        if self._under_way[caller] >= MAX_REQUESTS:
            raise TooManyRequestsError
        self._under_way[caller] += 1
        try:
            yield
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]
