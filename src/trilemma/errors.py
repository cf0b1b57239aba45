"""How a program ends other than by finishing: its exit statuses, and what is raised."""

FAILED = 1
REFUSED = 2  # something the user can fix: running the same command again would end the same way
PREEMPTED = 75  # asked to stop by SIGUSR1, SIGUSR2 or SIGTERM, with everything written: run the same command again
INTERRUPTED = 130  # by Ctrl-C


class UserError(Exception):
    """Bad input: one line that says what is wrong and how to fix it.

    Entry points print the line and exit with status 2; no traceback is shown.
    """


class TrainingError(Exception):
    """Something went wrong that was not wrong with the input: one line that says what, and what is left to go on from.

    A monitor raises it that sees training go wrong. Entry points print the line and exit with status 1.
    """


class Stopped(BaseException):
    """The program was asked to stop and does, with everything written that there was to write.

    Not an `Exception`: nothing that tries again or does without may swallow it.

    Args:
        status: The exit status, `PREEMPTED` or `INTERRUPTED`.
        line: What happened and how to go on, for the user; empty where that has been said.
    """

    def __init__(self, status: int, line: str = "") -> None:
        super().__init__(line)
        self.status = status
        self.line = line
