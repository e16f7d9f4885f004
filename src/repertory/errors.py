"""Errors for people: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. The command line prints it as one line and exits with 2."""


class DataError(UserError, ValueError):
    """The data cannot be used as they are: empty, not finite, of the wrong kind, a column missing."""


class ConfigError(UserError, ValueError):
    """An option that is unknown, out of range, or that this system cannot honour."""


class MissingExtraError(UserError):
    """A package of an extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'repertory[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.package, self.extra)


def nearest(name: str, valid: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest valid name, or the list of valid names."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(valid)}"


def first_line(error: Exception) -> str:
    """What another package's error says in its first line, cut to 160 characters; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
