"""Exceptions that the command line reports by their message, and words for messages."""

from __future__ import annotations

import re

NEW_RUN = "begin a new run (move this one away, or choose another store)"
"""Remedy where a labeler has to change, since a run does not continue with another labeler."""


class LdmprobeError(Exception):
    """Base class of all exceptions that this package raises deliberately.

    User names and passwords are removed from URLs in the message, which libraries quote in theirs.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_logins(p) if isinstance(p, str) else p for p in parts))


class UserError(LdmprobeError):
    """Error for a mistake in a study, in a file or in the environment.

    The message is one sentence with the field, its value and the remedy; the command line prints
    it without a traceback.
    """


class RunError(LdmprobeError, RuntimeError):
    """Error for a run that stopped early; the message gives the cause and how to continue."""


def without_logins(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it.

    Args:
        text: any text, such as the message of an exception of an HTTP library.
    """
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 step`` or ``2 batches``."""
    return f"{number} {noun}{('es' if noun.endswith('ch') else 's') * (abs(number) != 1)}"


def verb(number: int, singular: str = "is", plural: str = "are") -> str:
    """Return the form of a verb that agrees with a number of things."""
    return singular if number == 1 else plural
