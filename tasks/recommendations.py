"""Recommendations: the items that a user will like next, or items similar to one.

The network represents users by their ratings. A known user, a new user and a user whose ratings are part of the request
are therefore handled in the same way, and the table of users holds only their histories.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StrictStr,
    WithJsonSchema,
    create_model,
)
from pydantic_core import PydanticCustomError

from tasks._items import (
    LENGTH_BUCKETS,
    MAX_HISTORY,
    NO_RATING,
    ItemTable,
    Scale,
    UserHistory,
    bucket_length,
    pad_histories,
)
from tasks._limits import check_counts
from tasks.comparison import overlap
from tasks.contract import (
    Answer,
    Arrays,
    InvalidInput,
    InvalidOutput,
    Limits,
    Problem,
    Request,
    Samples,
    Task,
    TensorSpec,
)

MAX_ITEMS = 100
"""Maximum number of recommendations in an answer."""
EXCLUDED_SCORE = -2.0
"""The score that the graph assigns to excluded items; lower than any probability or cosine."""
_MAX_NOTICES = 20
_MAX_ID_LENGTH = 200
_MAX_FIELDS = 10
"""Maximum fields of a rating. A rating has two, so the error lists up to eight unknown fields individually."""

_POPULAR = "Popular with everybody."
_NOTHING_KNOWN = "Popular with everybody; nothing is known of your taste yet."
_LIKE_MINDED = "Often liked by people who rated the same items."


def _as_text(value: Any) -> Any:
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(value, str) and not 1 <= len(value) <= _MAX_ID_LENGTH:
        kind: Literal["too_long", "too_short"] = "too_long" if value else "too_short"
        message = "an id has 1 to {limit} characters; this one has {count}"
        raise PydanticCustomError(kind, message, {"limit": _MAX_ID_LENGTH, "count": len(value)})
    return value


Id = Annotated[
    StrictStr,
    BeforeValidator(_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": _MAX_ID_LENGTH}, {"type": "integer"}]}),
]
"""An id, as a string or an integer."""


class Rating(BaseModel):
    """An item that the user rated or chose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: Annotated[Id, Field(description="The item's id.")]


class RecommendedItem(BaseModel):
    """An item, and the reason for its recommendation."""

    id: str
    title: str
    score: Annotated[
        float,
        Field(
            description="The probability that this is the next item the user likes, among all items that could be "
            "recommended; for `similar_to`: the cosine similarity of the two items."
        ),
    ]
    reason: str
    details: Annotated[dict[str, str], Field(description="Further properties of the item.")] = {}


class RecommendationsAnswer(Answer):
    """The recommended items, best first."""

    items: list[RecommendedItem]
    fallback: Annotated[
        Literal["popularity"] | None,
        Field(description="True if nothing is known about the user; the most popular items are returned."),
    ] = None
    notices: Annotated[
        list[str],
        Field(description=f"Parts of the request that were left out, and why; at most {_MAX_NOTICES} are listed."),
    ] = []


@dataclass(frozen=True)
class Recommendations(Task):
    """Recommended items for a user, for ratings in the request, or similar to an item.

    Attributes:
        known: how many items the network has learnt: the first rows of the table.
        scale: the rating scale; None if users chose items without rating them.
        ordered: whether the order of the ratings matters.
        items: the items that can be recommended.
        users: the history of each known user, latest last: the items' numbers, and the levels of the ratings.
        example_user: the user of the example request; empty to use `example_items` instead.
        example_items: ids of the items rated in the example requests.
    """

    known: int
    scale: Scale | None
    ordered: bool
    items: ItemTable
    users: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    example_user: str = ""
    example_items: tuple[str, ...] = ()

    files: ClassVar[Mapping[str, str]] = {"items": "items.json", "users": "users.json"}

    def __post_init__(self) -> None:
        if not 1 <= self.known <= len(self.items):
            raise ValueError(f"the network knows {self.known} items and the table has {len(self.items)}")
        levels = self.scale.levels if self.scale else 0
        for name, (numbers, user_levels) in self.users.items():
            is_valid = len(numbers) == len(user_levels) and all(1 <= number <= self.known for number in numbers)
            if not is_valid or not all(0 <= level <= levels for level in user_levels):
                raise ValueError(f"the history of user '{name}' has items or levels that the network does not know")

    @property
    def list_length(self) -> int:
        """The number of items that the graph returns."""
        return min(MAX_ITEMS, self.known)

    @cached_property
    def _longest_history(self) -> int:
        """The number of ratings of the user with most ratings, whose ratings a request must be able to hold."""
        return max((len(numbers) for numbers, _ in self.users.values()), default=0)

    def max_json_values(self, limits: Limits) -> int:
        """Count the fields of each rating and each item to exclude, twice, since an id may contain a comma."""
        return _MAX_FIELDS + 8 * max(limits.rows, self._longest_history)

    @cached_property
    def request_type(self) -> type[Request]:
        """The request model, with the bounds of the rating scale."""
        rating = create_model("Rating", __base__=Rating, rating=(self._rating_type, None))
        longest = self._longest_history
        counted = BeforeValidator(partial(check_counts, name="item", max_fields=_MAX_FIELDS, at_least=longest))
        # Listing the problems of every rating could take longer than the rest of the request.
        first = Field(fail_fast=True)
        ratings, ids = Annotated[list[rating], first, counted], Annotated[list[Id], first, counted]
        order = ", latest last" if self.ordered else ""
        fields: dict[str, Any] = {
            "user": (Id | None, Field(None, description="The id of a user that the model knows.")),
            "ratings": (
                ratings | None,
                Field(
                    None,
                    description=f"The user's ratings{order}; with `user`, they are added to the known ratings. Send "
                    "an empty list to get the most popular items.",
                ),
            ),
            "similar_to": (Id | None, Field(None, description="Return items similar to this one.")),
            "k": (
                Annotated[int, Strict()],
                Field(
                    10, ge=1, le=MAX_ITEMS, description="The number of items; fewer are returned if no more are left."
                ),
            ),
            "exclude": (ids, Field([], description="Items not to recommend.")),
            "include_seen": (bool, Field(False, description="Also recommend items that the user has already rated.")),
        }
        return create_model("RecommendationsRequest", __base__=Request, **fields)

    @property
    def _rating_type(self) -> Any:
        number = Annotated[float, Strict(), AllowInfNan(False)]
        if self.scale is None:
            note = "Accepted but not used: the model learnt from choices without ratings."
            return Annotated[number | None, Field(description=note)]
        bounded = Annotated[number, Field(ge=self.scale.low, le=self.scale.high)]
        note = f"{self.scale.low:g} to {self.scale.high:g}; without a rating, the item counts as liked."
        return Annotated[bounded | None, Field(description=note)]

    @property
    def answer_type(self) -> type[RecommendationsAnswer]:
        """The same for every model of this task."""
        return RecommendationsAnswer

    @property
    def length_buckets(self) -> Mapping[str, tuple[int, ...]]:
        """The buckets of histories, for the axis `length`."""
        return {"length": LENGTH_BUCKETS}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Item numbers and levels, zero-padded; 1 for each candidate, else 0; 1 to find similar items, else 0."""
        return (
            TensorSpec("history", "int64", ("length",)),
            TensorSpec("levels", "int64", ("length",)),
            TensorSpec("candidates", "uint8", (self.known,)),
            TensorSpec("similar", "uint8", (1,)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The best items as rows with their scores, and for each the part of the history that supports it most.

        `because` is a position in the history and `contributions` how much it adds to the item's score; 0 if the
        history contains nothing that the user liked.
        """
        return (
            TensorSpec("items", "int64", (self.list_length,), "class"),
            TensorSpec("scores", "float32", (self.list_length,)),
            TensorSpec("because", "int64", (self.list_length,), "class"),
            TensorSpec("contributions", "float32", (self.list_length,)),
        )

    def decode(self, request: Any, limits: Limits) -> UserHistory:
        """Return the history of the user of the request. Raises InvalidInput."""
        excluded, notices = self._excluded_items(request)
        if request.similar_to is not None:
            if request.user is not None or request.ratings is not None:
                raise _invalid("similar_to", "Send either `similar_to`, or `user` and `ratings`, but not both.")
            number = self._item_number(request.similar_to, "similar_to")
            return UserHistory((number,), (NO_RATING,), excluded | {number}, similar=True, notices=tuple(notices))
        if request.user is None and request.ratings is None:
            raise _invalid(
                "user",
                "Send `user`, `ratings` (an empty list returns the most popular items) or `similar_to`.",
            )
        history = self._known_history(request.user) if request.user is not None else {}
        for number, level in self._read_ratings(request.ratings or [], notices, may_be_empty=bool(history)):
            history.pop(number, None)  # An item that is rated again moves to the end.
            history[number] = level
        if len(history) > MAX_HISTORY:
            notices.append(f"Only the latest {MAX_HISTORY} of {len(history)} ratings were used.")
        hidden = excluded if request.include_seen else excluded | set(history)
        return UserHistory(tuple(history), tuple(history.values()), hidden, notices=tuple(notices))

    def _excluded_items(self, request: Any) -> tuple[frozenset[int], list[str]]:
        rows = [(i, name, self.items.rows.get(name)) for i, name in enumerate(request.exclude)]
        notices = [f"exclude.{i}: there is no item '{name[:80]}'." for i, name, row in rows if row is None]
        return frozenset(row + 1 for _, _, row in rows if row is not None and row < self.known), notices

    def _item_number(self, name: str, where: str) -> int:
        row = self.items.rows.get(name)
        if row is None:
            raise _invalid(
                where, f"There is no item '{name[:80]}'; send the id of one of the model's items.", "unknown"
            )
        if row >= self.known:
            raise _invalid(
                where,
                f"'{self.items.titles[row]}' was added after training, so the model cannot use it; send another item.",
                "unknown",
            )
        return row + 1

    def _known_history(self, user: str) -> dict[int, int]:
        history = self.users.get(user)
        if history is None:
            raise _invalid(
                "user",
                f"The user '{user[:80]}' is not known to this model; send the user's ratings as `ratings` instead (an "
                "empty list returns the most popular items).",
                "unknown",
            )
        return dict(zip(*history, strict=True))

    def _read_ratings(self, ratings: Any, notices: list[str], *, may_be_empty: bool) -> list[tuple[int, int]]:
        """Return the item number and level of each rating. Raises InvalidInput if none of them can be used."""
        usable: list[tuple[int, int]] = []
        problems: list[Problem] = []
        numbers: set[int] = set()
        for i, rating in enumerate(ratings):
            where = f"ratings.{i}.item"
            try:
                number = self._item_number(rating.item, where)
            except InvalidInput as error:
                problems.extend(error.problems)
                continue
            if number in numbers:
                notices.append(f"{where}: '{rating.item[:80]}' was sent more than once; the last rating counts.")
            numbers.add(number)
            usable.append((number, self._level(rating.rating)))
        if problems and not usable and not may_be_empty:
            message = f"None of the rated items can be used. {problems[0].message}"
            raise InvalidInput(message, problems=tuple(problems[:_MAX_NOTICES]))
        left_out = [f"{problem.where}: {problem.message.partition(';')[0]}; it was left out." for problem in problems]
        notices.extend(left_out)
        return usable

    def _level(self, rating: float | None) -> int:
        return NO_RATING if rating is None or self.scale is None else self.scale.level(rating)

    def preprocess(self, raw: UserHistory) -> Samples:
        """Return one sample, its history padded to a bucket. The context is the UserHistory."""
        length = bucket_length(len(raw.latest))
        candidates = np.ones((1, self.known), np.uint8)
        withdrawn = self.items.withdrawn_rows
        candidates[0, withdrawn[withdrawn < self.known]] = 0
        candidates[0, np.fromiter(raw.hidden, np.int64, len(raw.hidden)) - 1] = 0
        arrays: dict[str, NDArray[Any]] = {
            "history": pad_histories([raw.latest], length),
            "levels": pad_histories([raw.levels[-MAX_HISTORY:]], length),
            "candidates": candidates,
            "similar": np.full((1, 1), raw.similar, np.uint8),
        }
        return Samples(arrays, raw)

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> RecommendationsAnswer:
        """Return up to `k` of the remaining items, each with the reason for its recommendation."""
        history: UserHistory = samples.context
        rows, scores, because, contributions = (outputs[spec.name][0] for spec in self.outputs)
        if not np.isfinite(scores).all() or not ((rows >= 0) & (rows < self.known)).all():
            raise InvalidOutput("The network returned scores that are not finite, or items that do not exist.")
        remaining = [i for i in range(len(scores)) if scores[i] > EXCLUDED_SCORE / 2][: request.k]
        common_reason = self._common_reason(history)
        items = []
        for i in remaining:
            reason = common_reason or self._reason(history, int(because[i]), float(contributions[i]))
            items.append(self._item(int(rows[i]), float(scores[i]), reason))
        notices = list(history.notices)
        if not items:
            notices.append("No items are left to recommend: all are seen, excluded or withdrawn.")
        fallback = None if history.history else "popularity"
        return RecommendationsAnswer(items=items, fallback=fallback, notices=notices[:_MAX_NOTICES])

    def agreement(self, ours: RecommendationsAnswer, theirs: RecommendationsAnswer) -> float:
        """Return the fraction of items that both lists contain, regardless of rank."""
        return overlap([item.id for item in ours.items], [item.id for item in theirs.items])

    def _item(self, row: int, score: float, reason: str) -> RecommendedItem:
        return RecommendedItem(
            id=self.items.ids[row],
            title=self.items.titles[row],
            score=float(f"{score:.4g}"),
            reason=reason,
            details=self.items.details_of(row),
        )

    def _common_reason(self, history: UserHistory) -> str:
        """Return the reason that applies to all items of an answer; empty if each item has its own."""
        if not history.history:
            return _NOTHING_KNOWN
        if history.similar:
            return f"Similar to {self._title(history.history[0])}."
        return "" if any(map(self.is_liked, history.levels[-MAX_HISTORY:])) else _LIKE_MINDED

    def _reason(self, history: UserHistory, because: int, contribution: float) -> str:
        if contribution <= 0 or not 0 <= because < len(history.latest):
            return _POPULAR
        return f"Because you liked {self._title(history.latest[because])}."

    def is_liked(self, level: int) -> bool:
        """Whether a rating of this level means that the user liked the item."""
        return level == NO_RATING or (self.scale is not None and level >= self.scale.liked_from)

    def _title(self, number: int) -> str:
        return self.items.titles[number - 1]

    def example(self) -> dict[str, Any]:
        """Return a request for a known user or, if there is none, for ratings."""
        return {"user": self.example_user, "k": 3} if self.example_user else {**self._example_ratings(), "k": 3}

    def _example_ratings(self) -> dict[str, Any]:
        rating = {} if self.scale is None else {"rating": self.scale.high}
        return {"ratings": [{"item": name, **rating} for name in self.example_items or self.items.ids[:1]]}

    def examples(self) -> list[dict[str, Any]]:
        """Return requests for a user, for ratings, for popular items and for similar items."""
        first = (self.example_items or self.items.ids)[0]
        return [
            self.example(),
            {**self._example_ratings(), "k": 2, "exclude": [self.items.ids[-1]]},
            {"ratings": [], "k": 3},
            {"similar_to": first, "k": 2},
            {**self._example_ratings(), "k": 1, "include_seen": True},
        ]


def _invalid(where: str, message: str, reason: str = "malformed") -> InvalidInput:
    return InvalidInput(message, problems=(Problem(where, reason, message),))
