"""Golden requests for recommendations: requests whose lists keep their order despite rounding on another machine."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.contract import Arrays, Limits
from tasks.recommendations import Recommendations

_CANDIDATES = 40
"""How many requests of each kind are compared."""
_MIN_GAP = 0.01
"""The smallest gap between neighbours in a list, relative to the larger score."""


def select_golden_requests(task: Recommendations, served: nn.Module) -> tuple[Recommendations, list[dict[str, Any]]]:
    """Return the task with a clear example, and requests by user, by ratings, without a history, and by a similar item.

    Each request is the one with the clearest order among several; if its list has close scores, only the first few
    items are requested. If the task keeps no users, no request names one.
    """
    by_ratings = _clearest(task, served, list(_ratings_requests(task)) or _most_liked_requests(task))
    by_item = _clearest(task, served, _similar_requests(task))
    items = [rating["item"] for rating in by_ratings["ratings"]]
    by_user = _clearest(task, served, _user_requests(task)) if task.users else None
    task = replace(task, example_user=by_user["user"] if by_user else "", example_items=tuple(items))
    with_exclusion = {**(by_user or by_ratings), "exclude": [items[0]], "k": 2}
    popular = _clearest(task, served, [{"ratings": [], "k": 5}])
    with_seen = _clearest(task, served, [{**by_ratings, "include_seen": True}])
    return task, [*([by_user] if by_user else []), by_ratings, popular, by_item, with_exclusion, with_seen]


def _user_requests(task: Recommendations) -> Iterator[dict[str, Any]]:
    for name in _spread(list(task.users)):
        yield {"user": name, "k": 5}


def _ratings_requests(task: Recommendations) -> Iterator[dict[str, Any]]:
    """Generate requests with the three most popular of the latest items that a user liked."""
    for name in _spread(list(task.users)):
        numbers, levels = task.users[name]
        liked = [i for i, level in enumerate(levels) if task.is_liked(level)][-20:]
        best = sorted(sorted(liked, key=lambda i: -task.items.likes[numbers[i] - 1])[:3])
        if best:
            ratings = [{} if task.scale is None else {"rating": task.scale.rating(levels[i])} for i in best]
            items = [task.items.ids[numbers[i] - 1] for i in best]
            yield {"ratings": [{"item": item, **rating} for item, rating in zip(items, ratings, strict=True)], "k": 5}


def _most_liked_requests(task: Recommendations) -> list[dict[str, Any]]:
    """Return requests with pairs of the most liked items, for a task whose users are not kept or liked nothing."""
    rating = {} if task.scale is None else {"rating": task.scale.high}
    items = [task.items.ids[row] for row in _most_liked_rows(task)]
    return [{"ratings": [{"item": item, **rating} for item in pair], "k": 5} for pair in pairwise(items)]


def _similar_requests(task: Recommendations) -> Iterator[dict[str, Any]]:
    for row in _most_liked_rows(task):
        yield {"similar_to": task.items.ids[row], "k": 5}


def _most_liked_rows(task: Recommendations) -> list[int]:
    rows: list[int] = np.argsort(-np.array(task.items.likes[: task.known]), kind="stable")[:_CANDIDATES].tolist()
    return rows


def _spread(names: list[str]) -> list[str]:
    return [names[i] for i in np.linspace(0, len(names) - 1, min(_CANDIDATES, len(names))).astype(int).tolist()]


def _clearest(task: Recommendations, served: nn.Module, requests: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the request whose list has the widest smallest gap, its k reduced to before the first narrow gap."""
    candidates = [(request, _relative_gaps(task, served, request)) for request in requests]
    request, gaps = max(candidates, key=lambda candidate: candidate[1][: candidate[0]["k"]].min(initial=np.inf))
    clear = int((np.cumprod(gaps >= _MIN_GAP)).sum())
    return {**request, "k": max(1, min(request["k"], clear))}


def _relative_gaps(task: Recommendations, served: nn.Module, request: dict[str, Any]) -> NDArray[np.floating]:
    """Return the gap between each score and the next, relative to the larger one; 1 after the last."""
    raw = task.decode(task.parse(request, Limits()), Limits())
    arrays: Arrays = task.preprocess(raw).arrays
    with torch.no_grad():
        scores = served(*(torch.from_numpy(arrays[spec.name]) for spec in task.inputs))[1][0].numpy()
    scores = scores[scores > -1]
    return np.append((scores[:-1] - scores[1:]) / np.maximum(np.abs(scores[:-1]), 1e-9), np.ones(1))
