"""Golden requests for recommendations: those whose lists keep their order when another machine rounds otherwise."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.contract import Arrays, Limits
from tasks.recommendations import Recommendations

_TRIED = 40
_CLEAR = 0.01
"""The least gap between two neighbours in a list, as a share of the larger score."""


def clear_requests(task: Recommendations, served: nn.Module) -> tuple[Recommendations, list[dict[str, Any]]]:
    """The task with a clear example, and request bodies: a user, ratings, nobody in particular, like an item.

    Each is the clearest of some dozens; where none is clear enough, the first few of a list are asked for only. Where
    the task keeps no users, none of the bodies names one.
    """
    rated = _clearest(task, served, iter(list(_ratings(task)) or _most_liked(task)))
    similar = _clearest(task, served, _similar(task))
    named = [each["item"] for each in rated["ratings"]]
    user = _clearest(task, served, _users(task)) if task.users else None
    calibrated_task = replace(task, example_user=user["user"] if user else "", example_items=tuple(named))
    without = {**(user or rated), "exclude": [named[0]], "k": 2}
    popular = _clearest(calibrated_task, served, iter([{"ratings": [], "k": 5}]))
    seen = _clearest(calibrated_task, served, iter([{**rated, "include_seen": True}]))
    return calibrated_task, [*([user] if user else []), rated, popular, similar, without, seen]


def _users(task: Recommendations) -> Iterator[dict[str, Any]]:
    for name in _spread(list(task.users)):
        yield {"user": name, "k": 5}


def _ratings(task: Recommendations) -> Iterator[dict[str, Any]]:
    """The three best known of the latest items that a user liked."""
    for name in _spread(list(task.users)):
        numbers, levels = task.users[name]
        liked = [i for i, level in enumerate(levels) if task.is_liked(level)][-20:]
        best = sorted(sorted(liked, key=lambda i: -task.items.likes[numbers[i] - 1])[:3])
        if best:
            rating = [{} if task.scale is None else {"rating": task.scale.rating(levels[i])} for i in best]
            items = [task.items.ids[numbers[i] - 1] for i in best]
            yield {"ratings": [{"item": item, **more} for item, more in zip(items, rating, strict=True)], "k": 5}


def _most_liked(task: Recommendations) -> list[dict[str, Any]]:
    """Pairs of the items that most liked: what stands in for histories where no user's is kept, or liked anything."""
    rating = {} if task.scale is None else {"rating": task.scale.high}
    names = [task.items.ids[row] for row in _by_likes(task)]
    return [{"ratings": [{"item": item, **rating} for item in pair], "k": 5} for pair in pairwise(names)]


def _similar(task: Recommendations) -> Iterator[dict[str, Any]]:
    for row in _by_likes(task):
        yield {"similar_to": task.items.ids[row], "k": 5}


def _by_likes(task: Recommendations) -> list[int]:
    """The rows of some dozens of items, those first that most liked."""
    rows: list[int] = np.argsort(-np.array(task.items.likes[: task.known]), kind="stable")[:_TRIED].tolist()
    return rows


def _spread(names: list[str]) -> list[str]:
    return [names[i] for i in np.linspace(0, len(names) - 1, min(_TRIED, len(names))).astype(int).tolist()]


def _clearest(task: Recommendations, served: nn.Module, bodies: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The body whose list has the widest gaps; with a smaller k where even that one has narrow ones."""
    chances = [(body, _gaps(task, served, body)) for body in bodies]
    body, gaps = max(chances, key=lambda chance: chance[1][: chance[0]["k"]].min(initial=np.inf))
    clear = int((np.cumprod(gaps >= _CLEAR)).sum())
    return {**body, "k": max(1, min(body["k"], clear))}


def _gaps(task: Recommendations, served: nn.Module, body: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.floating]]:
    """Between each score and the next, as shares of the larger one."""
    request = task.parse(body, Limits())
    arrays: Arrays = task.preprocess(task.decode(request, Limits())).arrays
    with torch.no_grad():
        scores = served(*(torch.from_numpy(arrays[spec.name]) for spec in task.inputs))[1][0].numpy()
    there = scores[scores > -1]
    return np.append((there[:-1] - there[1:]) / np.maximum(np.abs(there[:-1]), 1e-9), np.ones(1))
