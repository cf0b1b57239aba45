"""Errors that are the user's to mend."""


class UserError(Exception):
    """Bad input: one line that says what is wrong and how to mend it.

    Entry points print the line and exit with status 2; no traceback is shown.
    """
