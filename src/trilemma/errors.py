"""Errors that are the user's to mend."""


class UserError(Exception):
    """Bad input: one line that says what is wrong and how to mend it.

    Entry points print the line and exit with status 2; no traceback is shown.
    """


class TrainingError(Exception):
    """A monitor ended training, which had gone wrong: one line that says what was seen, at which batch, and what is left to go on from.

    Entry points print the line and exit with status 1; nothing was wrong with the input.
    """
