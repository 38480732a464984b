"""What will this user like next? And what is like this item?

Who somebody is, for the network, is what they rated: so a known user, one who has never been here and one whose
ratings come with the request are all asked about in the same way, and the table of users is but their histories.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
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
    ValidationInfo,
    WithJsonSchema,
    create_model,
)
from pydantic_core import PydanticCustomError

from tasks._items import LENGTH_BUCKETS, MAX_HISTORY, NO_RATING, ItemTable, Scale, UserHistory, bucket, filled
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
"""Recommendations in an answer."""
NOT_WANTED = -2.0
"""The score that the graph gives to what is not to be recommended; a probability or a cosine is never that low."""
_MAX_NOTICES = 20
_MAX_ID_LENGTH = 200
_MAX_FIELDS = 10
"""Of a rating; it has two, so up to eight unknown ones are still named one by one in the error."""

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
"""An id, as text or as a whole number."""


class Rating(BaseModel):
    """An item that somebody rated, or chose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: Annotated[Id, Field(description="The item's id.")]


class RecommendedItem(BaseModel):
    """An item, and why it is in the list."""

    id: str
    title: str
    score: Annotated[
        float,
        Field(
            description="How probable it is that this is the next item they like, of all that could be recommended; of "
            "similar items: the cosine of the angle between the two."
        ),
    ]
    reason: str
    details: Annotated[dict[str, str], Field(description="What else the table of items says of it.")] = {}


class RecommendationsAnswer(Answer):
    """The best first."""

    items: list[RecommendedItem]
    fallback: Annotated[
        Literal["popularity"] | None,
        Field(description="Set where nothing is known of the user's taste: then the list is the same for everybody."),
    ] = None
    notices: Annotated[
        list[str], Field(description=f"What was left out of the request and why, the first {_MAX_NOTICES} of it.")
    ] = []


def _refuse_too_many(values: Any, info: ValidationInfo) -> Any:
    """Counts items, and the fields of each, before anything looks at every one of them."""
    limit = (info.context if isinstance(info.context, Limits) else Limits()).rows
    if isinstance(values, list) and len(values) > limit:
        message = "{count} items were sent; at most {limit} are accepted"
        raise PydanticCustomError("too_many", message, {"count": len(values), "limit": limit})
    for place, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            message = "item {place} has {count} fields; at most {limit} are accepted"
            raise PydanticCustomError("too_many", message, {"place": place, "count": len(value), "limit": _MAX_FIELDS})
    return values


@dataclass(frozen=True)
class Recommendations(Task):
    """A list of items for a user, for ratings that are sent, or like an item.

    Attributes:
        known: how many items the network learnt of: the first rows of the table.
        scale: of the ratings; None where people chose and did not rate.
        ordered: whether it counts in which order somebody rated.
        items: what can be recommended.
        users: what each known user rated, the latest last: the items' numbers, and the levels of the ratings.
        example_user: the one that the documentation asks for; empty: example_items are sent instead.
        example_items: ids that the examples rate.
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
        for name, (numbers, rated) in self.users.items():
            fits = len(numbers) == len(rated) and all(1 <= number <= self.known for number in numbers)
            if not fits or not all(0 <= level <= levels for level in rated):
                raise ValueError(f"the history of user '{name}' is not one of the network's items and levels")

    @property
    def most(self) -> int:
        """How many items the graph lists."""
        return min(MAX_ITEMS, self.known)

    @cached_property
    def request_type(self) -> type[Request]:
        """The rating's bounds are those of the scale."""
        rating = create_model("Rating", __base__=Rating, rating=(self._rating_type, None))
        ratings = Annotated[list[rating], BeforeValidator(_refuse_too_many)]
        ids = Annotated[list[Id], BeforeValidator(_refuse_too_many)]
        order = ", the latest last" if self.ordered else ""
        fields: dict[str, Any] = {
            "user": (Id | None, Field(None, description="A user the model knows.")),
            "ratings": (
                ratings | None,
                Field(
                    None,
                    description=f"What somebody rated{order}. With `user`: beside what is known of them. An empty list "
                    "asks for what is popular.",
                ),
            ),
            "similar_to": (Id | None, Field(None, description="Items like this one, instead of those for a user.")),
            "k": (
                Annotated[int, Strict()],
                Field(10, ge=1, le=MAX_ITEMS, description="How many items; fewer where no more are left."),
            ),
            "exclude": (ids, Field([], description="Items not to recommend.")),
            "include_seen": (bool, Field(False, description="Also recommend what they rated already.")),
        }
        return create_model("RecommendationsRequest", __base__=Request, **fields)

    @property
    def _rating_type(self) -> Any:
        number = Annotated[float, Strict(), AllowInfNan(False)]
        if self.scale is None:
            note = "Accepted and not used: the model learnt from what people chose."
            return Annotated[number | None, Field(description=note)]
        bounded = Annotated[number, Field(ge=self.scale.low, le=self.scale.high)]
        note = f"{self.scale.low:g} to {self.scale.high:g}; without one, the item counts as liked."
        return Annotated[bounded | None, Field(description=note)]

    @property
    def answer_type(self) -> type[RecommendationsAnswer]:
        """The same for every model of this task."""
        return RecommendationsAnswer

    @property
    def length_buckets(self) -> Mapping[str, tuple[int, ...]]:
        """The buckets of histories."""
        return {"length": LENGTH_BUCKETS}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Numbers and levels, filled up with zeros; what may be recommended (1) or not (0); 1 for similar items."""
        return (
            TensorSpec("history", "int64", ("length",)),
            TensorSpec("levels", "int64", ("length",)),
            TensorSpec("candidates", "uint8", (self.known,)),
            TensorSpec("similar", "uint8", (1,)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The best items by their rows, with their scores; for each, what of the history speaks for it most.

        `because` is a place in the history, `contribution` how much it adds to the item's score; 0 where nothing that
        was liked is in the history.
        """
        return (
            TensorSpec("items", "int64", (self.most,), "class"),
            TensorSpec("scores", "float32", (self.most,)),
            TensorSpec("because", "int64", (self.most,), "class"),
            TensorSpec("contributions", "float32", (self.most,)),
        )

    def decode(self, request: Any, limits: Limits) -> UserHistory:
        """What is known of whom the request is about. Raises InvalidInput."""
        excluded, notices = self._excluded(request)
        if request.similar_to is not None:
            if request.user is not None or request.ratings is not None:
                raise _invalid("similar_to", "Send either `similar_to`, or `user` and `ratings`, and not both.")
            number = self._number_of(request.similar_to, "similar_to")
            return UserHistory((number,), (NO_RATING,), excluded | {number}, similar=True, notices=tuple(notices))
        if request.user is None and request.ratings is None:
            raise _invalid(
                "user",
                "Say for whom: `user`, or `ratings` (an empty list asks for what is popular), or `similar_to` an item.",
            )
        history = self._history_of(request.user) if request.user is not None else {}
        for number, level in self._rated(request.ratings or [], notices, may_be_empty=bool(history)):
            history.pop(number, None)  # Rated again: now it is the latest.
            history[number] = level
        if len(history) > MAX_HISTORY:
            notices.append(f"Of {len(history)} ratings the latest {MAX_HISTORY} were used.")
        hidden = excluded if request.include_seen else excluded | set(history)
        return UserHistory(tuple(history), tuple(history.values()), hidden, notices=tuple(notices))

    def _excluded(self, request: Any) -> tuple[frozenset[int], list[str]]:
        rows = [(place, name, self.items.rows.get(name)) for place, name in enumerate(request.exclude)]
        notices = [f"exclude.{place}: there is no item '{name[:80]}'." for place, name, row in rows if row is None]
        return frozenset(row + 1 for _, _, row in rows if row is not None and row < self.known), notices

    def _number_of(self, name: str, where: str) -> int:
        row = self.items.rows.get(name)
        if row is None:
            raise _invalid(
                where, f"There is no item '{name[:80]}'; send the id of one of the model's items.", "unknown"
            )
        if row >= self.known:
            raise _invalid(
                where,
                f"'{self.items.titles[row]}' is new: the network has not learnt of it; send another.",
                "unknown",
            )
        return row + 1

    def _history_of(self, user: str) -> dict[int, int]:
        found = self.users.get(user)
        if found is None:
            raise _invalid(
                "user",
                f"The user '{user[:80]}' is not known to this model: send what they rated as `ratings` instead (an "
                "empty list asks for what is popular).",
                "unknown",
            )
        return dict(zip(*found, strict=True))

    def _rated(self, ratings: Any, notices: list[str], *, may_be_empty: bool) -> Iterator[tuple[int, int]]:
        """The number and level of each rating. Raises InvalidInput where ratings were sent and none can be used."""
        found: list[tuple[int, int]] = []
        problems: list[Problem] = []
        seen: set[int] = set()
        for place, rating in enumerate(ratings):
            where = f"ratings.{place}.item"
            try:
                number = self._number_of(rating.item, where)
            except InvalidInput as error:
                problems.extend(error.problems)
                continue
            if number in seen:
                notices.append(f"{where}: '{rating.item[:80]}' was sent before; the last rating counts.")
            seen.add(number)
            found.append((number, self._level_of(rating.rating)))
        if problems and not found and not may_be_empty:
            message = f"None of the items that were rated can be used. {problems[0].message}"
            raise InvalidInput(message, problems=tuple(problems[:_MAX_NOTICES]))
        left_out = [f"{problem.where}: {problem.message.partition(';')[0]}; it was left out." for problem in problems]
        notices.extend(left_out)
        return iter(found)

    def _level_of(self, rating: float | None) -> int:
        return NO_RATING if rating is None or self.scale is None else self.scale.level(rating)

    def preprocess(self, raw: UserHistory) -> Samples:
        """One sample, its history filled up to a bucket."""
        length = bucket(len(raw.latest))
        candidates = np.ones((1, self.known), np.uint8)
        withdrawn = self.items.withdrawn_rows
        candidates[0, withdrawn[withdrawn < self.known]] = 0
        candidates[0, np.fromiter(raw.hidden, np.int64, len(raw.hidden)) - 1] = 0
        arrays: dict[str, NDArray[Any]] = {
            "history": filled([raw.latest], length),
            "levels": filled([raw.levels[-MAX_HISTORY:]], length),
            "candidates": candidates,
            "similar": np.full((1, 1), raw.similar, np.uint8),
        }
        return Samples(arrays, raw)

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> RecommendationsAnswer:
        """As many of the items as were asked for and are left, each with its reason."""
        user: UserHistory = samples.context
        rows, scores, because, contributions = (outputs[spec.name][0] for spec in self.outputs)
        if not np.isfinite(scores).all() or not ((rows >= 0) & (rows < self.known)).all():
            raise InvalidOutput("The network gave no finite scores, or items that are none.")
        places = [i for i in range(len(scores)) if scores[i] > NOT_WANTED / 2][: request.k]
        fixed = self._reason_for_all(user)
        items = []
        for i in places:
            reason = fixed or self._reason(user, int(because[i]), float(contributions[i]))
            items.append(self._item(int(rows[i]), float(scores[i]), reason))
        notices = list(user.notices)
        if not items:
            notices.append("Nothing is left to recommend: all items are seen, excluded or withdrawn.")
        fallback = None if user.history else "popularity"
        return RecommendationsAnswer(items=items, fallback=fallback, notices=notices[:_MAX_NOTICES])

    def agreement(self, ours: RecommendationsAnswer, theirs: RecommendationsAnswer) -> float:
        """The share of items that both lists have, at whatever rank."""
        return overlap([item.id for item in ours.items], [item.id for item in theirs.items])

    def _item(self, row: int, score: float, reason: str) -> RecommendedItem:
        return RecommendedItem(
            id=self.items.ids[row],
            title=self.items.titles[row],
            score=float(f"{score:.4g}"),
            reason=reason,
            details=self.items.details_of(row),
        )

    def _reason_for_all(self, user: UserHistory) -> str:
        """The reason that all items of an answer share; empty where each has its own."""
        if not user.history:
            return _NOTHING_KNOWN
        if user.similar:
            return f"Similar to {self._title(user.history[0])}."
        return "" if any(map(self.is_liked, user.levels[-MAX_HISTORY:])) else _LIKE_MINDED

    def _reason(self, user: UserHistory, because: int, contribution: float) -> str:
        if contribution <= 0 or not 0 <= because < len(user.latest):
            return _POPULAR
        return f"Because you liked {self._title(user.latest[because])}."

    def is_liked(self, level: int) -> bool:
        """Whether a rating of this level says that somebody liked an item."""
        return level == NO_RATING or (self.scale is not None and level >= self.scale.liked_from)

    def _title(self, number: int) -> str:
        return self.items.titles[number - 1]

    def example(self) -> dict[str, Any]:
        """A known user, or ratings where there is none."""
        return {"user": self.example_user, "k": 3} if self.example_user else {**self._example_ratings(), "k": 3}

    def _example_ratings(self) -> dict[str, Any]:
        rating = {} if self.scale is None else {"rating": self.scale.high}
        return {"ratings": [{"item": name, **rating} for name in self.example_items or self.items.ids[:1]]}

    def examples(self) -> list[dict[str, Any]]:
        """For a user, for ratings, for nobody in particular, and like an item."""
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
