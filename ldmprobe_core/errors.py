"""The exceptions whose message is all that the command line prints."""


class UserError(Exception):
    """A mistake in a study, a file or the environment.

    Its message is one sentence that names the field, the value and what would be right; the
    command line prints it without a traceback.
    """


class RunError(RuntimeError):
    """A run did not come to its end, and its message says what failed and how to go on."""
