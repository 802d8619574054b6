"""The one exception that is a user's to mend."""


class UserError(Exception):
    """A mistake in a study, a file or the environment.

    Its message is one sentence that names the field, the value and what would be right; the
    command line prints it without a traceback.
    """
