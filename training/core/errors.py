"""Errors that the user can fix: the command line prints the message and exits with status 2."""


class CannotTrain(Exception):
    """Training cannot start or continue; the message says in one sentence what is wrong and what to do."""


class NoData(CannotTrain):
    """The data is not on this machine, and neither the mirror nor the official address has it."""
