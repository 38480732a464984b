"""The error of the download: what went wrong, and what to do about it."""


class CannotFetch(Exception):
    """A version was not downloaded; the message is for the operator."""
