"""Sections of documents that are generated from measurements, between two marks."""


def with_section(document: str, name: str, text: str) -> str:
    """Return the document with `text` between the marks of this name.

    Raises ValueError unless it has each mark exactly once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"The document has no place for the table: it needs the lines {begin} and {end}, once each.")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
