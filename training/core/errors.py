"""What the user can mend: the command line prints the sentence and ends with status 2."""


class CannotTrain(Exception):
    """Training cannot start or go on; the message is one sentence that says why and what to do."""


class NoData(CannotTrain):
    """The data is nowhere to be had: not here, not on the mirror, not at its official address."""
