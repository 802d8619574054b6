"""Exceptions that the command line reports by their message, without a traceback."""


class LdmprobeError(Exception):
    """Base class of all exceptions that this package raises deliberately."""


class UserError(LdmprobeError):
    """Error for a mistake in a study, in a file or in the environment.

    The message is one sentence with the field, its value and the remedy; the command line prints
    it without a traceback.
    """


class RunError(LdmprobeError, RuntimeError):
    """Error for a run that stopped early; the message gives the cause and how to continue."""
