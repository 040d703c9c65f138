"""Faults of a settings file, which are reported together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

from auditor.errors import SettingsError

P = ParamSpec("P")


class FaultList:
    """Collects the faults of a file, a sentence each."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect what a check raises; the statements after the ``with`` are executed in any case."""
        try:
            yield
        except SettingsError as error:
            self.sentences += error.sentences

    def refuse(self) -> None:
        """Raise SettingsError with all faults, each of them once; return if there is none."""
        if self.sentences:
            raise SettingsError(*dict.fromkeys(self.sentences)) from None


def raises_faults(find: Callable[P, Iterator[str]]) -> Callable[P, None]:
    """Return a check that raises SettingsError with all the sentences that a generator yields."""

    @wraps(find)
    def check(*args: P.args, **kwargs: P.kwargs) -> None:
        if sentences := list(find(*args, **kwargs)):
            raise SettingsError(*sentences)

    return check


def faults_of(check: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
    """Return the sentences of what a check raises; none if it raises nothing."""
    try:
        check(*args, **kwargs)
    except SettingsError as error:
        return error.sentences
    return ()
