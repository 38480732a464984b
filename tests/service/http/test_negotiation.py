"""Which form of an answer a client gets, by what it says it accepts."""

import pytest

from service.errors import InvalidHeader, InvalidRequest, NotAcceptable
from service.http.negotiation import choose_representation, apply_representation
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
def test_the_form_that_is_wanted_most_is_chosen(accept: str | None, representation: Representation) -> None:
    assert choose_representation(REPRESENTATIONS, accept) == representation


@pytest.mark.parametrize(
    "accept", ["text/html", "image/webp", "application/json;mask=other", "image/png;q=0", "nonsense"]
)
def test_what_no_form_is_cannot_be_had_and_the_error_lists_what_can(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/json, image/png, application/json;mask=rle, image/jpeg"):
        choose_representation(REPRESENTATIONS, accept)


@pytest.mark.parametrize("accept", ["image/png;q=2", "image/png;q=much", "image/png;q=nan"])
def test_a_weight_that_is_none_is_an_error(accept: str) -> None:
    with pytest.raises(InvalidHeader, match="q that is not between 0 and 1"):
        choose_representation(REPRESENTATIONS, accept)


def test_a_header_of_ten_thousand_options_is_read_as_far_as_anybody_means_it() -> None:
    assert choose_representation(REPRESENTATIONS, ",".join(["image/png"] * 10_000)) == PNG


def test_a_form_sets_what_it_stands_for_and_refuses_what_contradicts_it() -> None:
    assert apply_representation(PNG, {"image": b"x"}) == {"image": b"x", "mask": "png"}
    assert [apply_representation(JPEG, {"overlay": said}) for said in ("true", "1", "yes", True)] == [
        {"overlay": True}
    ] * 4
    with pytest.raises(InvalidRequest, match=r"mask: the request has 'rle', but its Accept \(image/png\) implies 'png'"):
        apply_representation(PNG, {"mask": "rle"})
