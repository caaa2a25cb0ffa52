"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """Bad input or configuration: one clear line that says what to do next.

    The verbs print the message as one line, without a traceback, and exit with status 2.
    """
