"""The representation of an answer is chosen by the Accept header."""

import pytest

from service.errors import InvalidHeader, InvalidRequest, NotAcceptable
from service.http.negotiation import apply_representation, choose_representation
from tasks.contract import Representation

JSON, RLE = Representation("application/json"), Representation("application/json;mask=rle", {"mask": "rle"})
PNG, JPEG = (
    Representation("image/png", {"mask": "png"}, file="mask"),
    Representation("image/jpeg", {"overlay": True}, file="overlay"),
)
REPRESENTATIONS = (JSON, PNG, RLE, JPEG)


@pytest.mark.parametrize(
    ("accept", "representation"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("APPLICATION/JSON", JSON),
        ("application/json; indent=2", JSON),
        ("application/json;version=1", JSON),
        (" , ", JSON),
        ("application/json;MASK=RLE", RLE),
        ("image/png", PNG),
        ("image/*", PNG),
        ("image/jpeg", JPEG),
        ("application/json; mask=rle", RLE),
        ('application/json;mask="rle"', RLE),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("image/jpeg;q=0.5, image/png;q=0.9", PNG),
        ("image/*;q=0.3, image/jpeg", JPEG),
        ("*/*, application/json;q=0", PNG),
        ("image/webp, image/jpeg;q=0.1", JPEG),
        ("image/png, application/json", JSON),
    ],
)
def test_the_representation_with_the_highest_quality_is_chosen(
    accept: str | None, representation: Representation
) -> None:
    assert choose_representation(REPRESENTATIONS, accept) == representation


@pytest.mark.parametrize(
    "accept", ["text/html", "image/webp", "application/json;mask=other", "image/png;q=0", "nonsense"]
)
def test_an_accept_header_without_a_match_is_rejected_with_the_available_types(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/json, image/png, application/json;mask=rle, image/jpeg"):
        choose_representation(REPRESENTATIONS, accept)


@pytest.mark.parametrize("accept", ["image/png;q=2", "image/png;q=much", "image/png;q=nan"])
def test_an_invalid_quality_is_rejected(accept: str) -> None:
    with pytest.raises(InvalidHeader, match="q that is not between 0 and 1"):
        choose_representation(REPRESENTATIONS, accept)


def test_only_the_beginning_of_a_very_long_header_is_read() -> None:
    assert choose_representation(REPRESENTATIONS, ",".join(["image/png"] * 10_000)) == PNG


def test_a_representation_sets_the_fields_it_implies_and_rejects_contradicting_ones() -> None:
    assert apply_representation(PNG, {"image": b"x"}) == {"image": b"x", "mask": "png"}
    assert [apply_representation(JPEG, {"overlay": text}) for text in ("true", "1", "yes", True)] == [
        {"overlay": True}
    ] * 4
    with pytest.raises(
        InvalidRequest, match=r"mask: the request has 'rle', but its Accept \(image/png\) implies 'png'"
    ):
        apply_representation(PNG, {"mask": "rle"})
