"""Exceptions whose message is all that the command line prints."""


class LdmprobeError(Exception):
    """Root of every exception that this package raises on purpose."""


class UserError(LdmprobeError):
    """A mistake in a study, a file or the environment.

    The message is one sentence with the field, its value and the remedy; the command line prints
    it without a traceback.
    """


class RunError(LdmprobeError, RuntimeError):
    """A run that stopped early; the message says what failed and how to continue."""
