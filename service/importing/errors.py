"""The error of the import: what does not fit, and what to do about it."""


class CannotImport(ValueError):
    """The graph, or what was said about it, does not fit the task; the message is one sentence for the user."""
