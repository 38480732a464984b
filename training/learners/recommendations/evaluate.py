"""What is known of a recommender: beside popularity and co-occurrence, by groups, and who gets shown to whom."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.manifest import Metric
from tasks.recommendations import Recommendations
from training.core.results import EmbeddingTable, Evaluation, Figure, Table
from training.evaluation.embeddings import axis_extremes_table
from training.learners.recommendations import metrics, sar
from training.learners.recommendations.dataset import EvalQuery, batch_of
from training.learners.recommendations.interactions import Ratings
from training.learners.recommendations.metrics import Lists
from training.learners.recommendations.plots import exposed, item_planes
from training.learners.recommendations.sar import VARIANTS, Sar

K = 10
_BATCH = 32
_RARE = 10
_SMALL = 30
Asked = Sequence[EvalQuery]


@dataclass(frozen=True)
class Judge:
    """What recommenders are judged by: the questions to choose by, and those to report."""

    ratings: Ratings
    task: Recommendations
    validating: Asked
    testing: Asked

    @cached_property
    def likes(self) -> NDArray[np.int64]:
        """How many people liked each item in training."""
        return self.ratings.likes

    @cached_property
    def trained(self) -> list[NDArray[np.int64]]:
        """What each user liked in training, by rows."""
        return [
            person.items[: person.trained_until][person.liked[: person.trained_until]] for person in self.ratings.people
        ]

    def by_network(self, served: nn.Module, asked: Asked) -> Lists:
        """The lists that the exported graph gives."""
        lists = []
        for start in range(0, len(asked), _BATCH):
            few = asked[start : start + _BATCH]
            histories = [each.history for each in few]
            levels = [each.person.levels[: each.until] for each in few]
            batch = batch_of(histories, levels, histories, self.ratings.known)
            with torch.no_grad():
                rows, scores = served(*(batch[spec.name] for spec in self.task.inputs))[:2]
            lists.append(np.where(scores[:, :K].numpy() > -1, rows[:, :K].numpy(), -1))
        return np.concatenate(lists)

    def by_popularity(self, asked: Asked) -> Lists:
        """The items that most liked in training."""
        return self._best(asked, lambda few: np.tile(self.likes.astype(np.float32), (len(few), 1)))

    def by_co_occurrence(self, variant: Sar, similarity: object, asked: Asked) -> Lists:
        """The lists of a variant of SAR."""
        known, half = self.ratings.known, variant.half_life
        return self._best(asked, lambda few: sar.scores(similarity, [each.liked for each in few], known, half))

    def _best(self, asked: Asked, scored: Callable[[Asked], NDArray[np.floating]]) -> Lists:
        lists = []
        for start in range(0, len(asked), 256):
            few = asked[start : start + 256]
            lists.append(metrics.best_items(scored(few), [each.history.tolist() for each in few], K))
        return np.concatenate(lists)

    def best_variant(self) -> tuple[Sar, dict[str, object]]:
        """The variant of SAR that is best on the validation items, and the similarities it was chosen among."""
        kinds = sorted({variant.similarity for variant in VARIANTS})
        found: dict[str, object] = {kind: sar.similarities(self.trained, self.ratings.known, kind) for kind in kinds}
        gains = {
            variant: gain(self.by_co_occurrence(variant, found[variant.similarity], self.validating), self.validating)
            for variant in VARIANTS
        }
        return max(gains, key=lambda variant: gains[variant]), found


def gains_of(lists: Lists, asked: Asked) -> NDArray[np.floating]:
    """NDCG of each list."""
    return metrics.discounted_gain(lists, [[each.wanted] for each in asked])


def gain(lists: Lists, asked: Asked) -> float:
    """Mean nDCG."""
    return float(gains_of(lists, asked).mean())


def evaluate_recommender(
    judge: Judge, served: Sequence[nn.Module], embeddings: Sequence[EmbeddingTable], grouped: Sequence[str]
) -> Evaluation:
    """All that is measured of the first of the networks, and how much the others differ."""
    asked, known = judge.testing, judge.ratings.known
    variant, similarity = judge.best_variant()
    plain = Sar()
    lists = {
        "this network": judge.by_network(served[0], asked),
        f"co-occurrence (SAR), tuned: {variant.words}": judge.by_co_occurrence(
            variant, similarity[variant.similarity], asked
        ),
        f"co-occurrence (SAR), plain: {plain.words}": judge.by_co_occurrence(plain, similarity["jaccard"], asked),
        "popularity": judge.by_popularity(asked),
    }
    ours, tuned, untuned, popular = (gains_of(each, asked) for each in lists.values())
    seeds = [float(ours.mean()), *(gain(judge.by_network(each, asked), asked) for each in served[1:])]
    shown = {name: metrics.exposure(each, known) for name, each in lists.items()}
    first = lists["this network"]
    named = [EmbeddingTable(each.field, each.values, each.vectors, each.names) for each in embeddings[:1]]
    return Evaluation(
        metrics=_metrics(judge, first, ours, tuned, untuned, popular, seeds),
        notes=_notes(judge, ours, tuned, variant),
        tables=(
            _comparison(judge, lists),
            _exposure_table(judge, shown),
            _by_history(judge, lists),
            *(_by_kind(judge, first, name) for name in grouped),
            _examples(judge, first),
            axis_extremes_table(_most_liked(named, judge.likes), 4),
        ),
        figures=(
            Figure(
                "Popularity and exposure",
                exposed(shown, judge.likes),
                "Left: how often an item is among the ten recommendations, against how many like it. Right: what share "
                "of all recommendations the most shown items get (Lorenz curves; dotted: all alike).",
            ),
            Figure(
                "Embeddings of the items",
                item_planes(_most_liked(named, judge.likes)),
                "The most liked items along the first two principal axes of what was learnt of them.",
            ),
        ),
        failures=_failures(judge, first, shown["this network"]),
        caveats=_caveats(judge),
    )


def _metrics(
    judge: Judge,
    lists: Lists,
    ours: NDArray[np.floating],
    tuned: NDArray[np.floating],
    untuned: NDArray[np.floating],
    popular: NDArray[np.floating],
    seeds: Sequence[float],
) -> tuple[Metric, ...]:
    asked = judge.testing
    wanted = [[each.wanted] for each in asked]
    shown = metrics.exposure(lists, judge.ratings.known)
    how = f"the last liked item of {len(asked):,} users, all items they had not rated are candidates"
    low, high = metrics.interval(ours)
    mean, deviation = float(np.mean(seeds)), float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0
    found = [
        ("ndcg_at_10", ours.mean(), f"{how}; 95 % interval over users {low:.4f} to {high:.4f}"),
        ("hit_rate_at_10", metrics.hit_rate(lists, wanted), f"{how}; with one item each, also the recall"),
        ("sar_ndcg_at_10", tuned.mean(), f"co-occurrence, the best of {len(VARIANTS)} variants by validation; {how}"),
        ("plain_sar_ndcg_at_10", untuned.mean(), f"co-occurrence by Jaccard, all liked items count alike; {how}"),
        ("popularity_ndcg_at_10", popular.mean(), f"what most like; {how}"),
        ("ndcg_over_sar", ours.mean() / max(tuned.mean(), 1e-9), "ndcg_at_10 / sar_ndcg_at_10"),
        ("ndcg_over_popularity", ours.mean() / max(popular.mean(), 1e-9), "ndcg_at_10 / popularity_ndcg_at_10"),
        ("coverage", metrics.coverage(shown), f"share of the items in any of the {len(asked):,} lists of ten"),
        ("gini_of_exposure", metrics.gini(shown), "0: all items are shown alike, 1: one has everything"),
        (
            "mean_popularity",
            metrics.mean_popularity(lists, judge.likes),
            "how many users like what is recommended, on average over the lists of ten",
        ),
    ]
    if len(seeds) > 1:
        found += [
            ("ndcg_at_10_mean", mean, f"mean over {len(seeds)} seeds; {how}"),
            ("ndcg_at_10_sd", deviation, f"standard deviation over {len(seeds)} seeds"),
        ]
    return tuple(Metric(name=name, value=float(value), protocol=protocol) for name, value, protocol in found)


def _notes(judge: Judge, ours: NDArray[np.floating], tuned: NDArray[np.floating], variant: Sar) -> tuple[str, ...]:
    low, high = metrics.interval(ours - tuned)
    verdict = "more than" if low > 0 else "not surely more than"
    sooner = "by time" if judge.ratings.ordered else "in an order drawn by a hash, since the data has no times"
    return (
        f"Split: each user's ratings are taken {sooner}. The last item they liked is the test, the one before it the "
        "validation; all that comes before that is for training, what lies between or after is not used. The network "
        "and the co-occurrence are trained on the same ratings and asked with the same histories (all before the item "
        "in question); the best epoch and the best variant of co-occurrence were both chosen on the validation items.",
        f"nDCG@10 is {ours.mean() - tuned.mean():+.4f} above that of co-occurrence, {verdict} chance: 95 % interval "
        f"over users {low:+.4f} to {high:+.4f}, paired. Co-occurrence here is {variant.words}.",
        "Users are split in time each by themselves: training has seen what others did later than the test item.",
    )


def _comparison(judge: Judge, lists: dict[str, Lists]) -> Table:
    wanted = [[each.wanted] for each in judge.testing]
    rows = []
    for name, each in lists.items():
        shown = metrics.exposure(each, judge.ratings.known)
        gains = gains_of(each, judge.testing)
        low, high = metrics.interval(gains)
        rows.append(
            (
                name,
                f"{gains.mean():.4f} ({low:.4f}–{high:.4f})",
                f"{metrics.hit_rate(each, wanted):.4f}",
                f"{metrics.coverage(shown):.3f}",
                f"{metrics.gini(shown):.3f}",
                f"{metrics.mean_popularity(each, judge.likes):.1f}",
            )
        )
    header = ("recommender", "nDCG@10", "hit rate@10", "coverage", "Gini of exposure", "mean popularity")
    return Table("Against what needs no network", header, tuple(rows))


def _exposure_table(judge: Judge, shown: dict[str, NDArray[np.int64]]) -> Table:
    share = partial(metrics.share_of_most_popular, likes=judge.likes)
    rows = tuple(
        (name, f"{share(counts, share=0.01):.1%}", f"{share(counts, share=0.1):.1%}", f"{(counts > 0).sum():,}")
        for name, counts in shown.items()
    )
    liked = ("what people like", f"{share(judge.likes, share=0.01):.1%}", f"{share(judge.likes, share=0.1):.1%}")
    rows = (*rows, (*liked, f"{(judge.likes > 0).sum():,}"))
    header = ("recommender", "goes to the most popular 1 %", "to the most popular 10 %", "items shown at all")
    note = "Of the lists of ten for all test users; the last row is the share of the likes in training."
    return Table("Popularity against exposure", header, rows, note)


def _by_history(judge: Judge, lists: dict[str, Lists]) -> Table:
    sizes = np.array([len(each.liked) for each in judge.testing])
    edges = [0, *np.unique(np.quantile(sizes, [0.25, 0.5, 0.75]).round()).astype(int).tolist(), int(sizes.max())]
    gains = [gains_of(each, judge.testing) for each in lists.values()]
    hits = metrics.found(lists["this network"], [[each.wanted] for each in judge.testing])
    rows = []
    for low, high in pairwise(edges):
        mine = (sizes > low) & (sizes <= high)
        if mine.any():
            count = f"{mine.sum()}{'*' if mine.sum() < _SMALL else ''}"
            figures = [f"{each[mine].mean():.4f}" for each in (gains[0], gains[1], gains[-1])]
            rows.append((f"{low + 1} to {high}", count, *figures, f"{hits[mine].mean():.3f}"))
    header = ("liked before", "users", "nDCG@10", "co-occurrence's", "popularity's", "hit rate@10")
    note = f"* fewer than {_SMALL} users: the figures are uncertain."
    return Table("By the length of the history", header, tuple(rows), note)


def _by_kind(judge: Judge, lists: Lists, name: str) -> Table:
    """By the kinds (genres) of the item that was to be found."""
    values = judge.ratings.table.details[name]
    kinds = [[part.strip() for part in values[each.wanted].split("|") if part.strip()] for each in judge.testing]
    gains = gains_of(lists, judge.testing)
    hit = metrics.found(lists, [[each.wanted] for each in judge.testing])
    counts = Counter(kind for row in kinds for kind in row)
    shown = Counter(kind.strip() for row in lists[lists >= 0] for kind in values[row].split("|") if kind.strip())
    rows = []
    for kind, count in counts.most_common(20):
        mine = np.array([kind in row for row in kinds])
        star = "*" if count < _SMALL else ""
        share = f"{shown[kind] / max(1, (lists >= 0).sum()):.1%}"
        wanted = f"{count / len(kinds):.1%}"
        rows.append((kind, f"{count}{star}", f"{gains[mine].mean():.4f}", f"{hit[mine].mean():.3f}", wanted, share))
    header = (name, "test items", "nDCG@10", "hit rate@10", "share of the test items", "share of what is recommended")
    return Table(f"By {name}", header, tuple(rows), f"An item may be of several. * fewer than {_SMALL}.")


def _examples(judge: Judge, lists: Lists) -> Table:
    """Recommendations for a few users, evenly from the first to the last."""
    titles = judge.ratings.table.titles
    rows = []
    for place in np.linspace(0, len(judge.testing) - 1, min(5, len(judge.testing))).astype(int).tolist():
        each = judge.testing[place]
        liked = ", ".join(titles[row] for row in each.liked[-3:])
        best = ", ".join(titles[row] for row in lists[place][:5] if row >= 0)
        found = "yes" if each.wanted in lists[place] else "no"
        rows.append((each.person.name, liked, best, titles[each.wanted], found))
    header = ("user", "liked last", "the first five recommendations", "liked next", "among the ten")
    return Table("Examples", header, tuple(rows))


def _most_liked(tables: Sequence[EmbeddingTable], likes: NDArray[np.int64], most: int = 300) -> list[EmbeddingTable]:
    """The embeddings of the most liked items: of the others little was learnt."""
    rows = np.argsort(-likes, kind="stable")[:most].tolist()
    return [
        EmbeddingTable(
            table.field,
            tuple(table.values[row] for row in rows),
            table.vectors[rows],
            tuple((table.names or tuple(map(str, table.values)))[row] for row in rows),
        )
        for table in tables
    ]


def _failures(judge: Judge, lists: Lists, shown: NDArray[np.int64]) -> tuple[str, ...]:
    hit = metrics.found(lists, [[each.wanted] for each in judge.testing])
    likes = np.array([judge.likes[each.wanted] for each in judge.testing])
    rare = likes < _RARE
    unknown = likes == 0
    found = [
        f"For {(~hit).sum():,} of {len(hit):,} test users the item they liked next was not among the ten.",
        f"{(shown == 0).sum():,} of {len(shown):,} items are in none of the {len(lists):,} lists of ten.",
    ]
    if rare.any():
        found.append(
            f"Of {rare.sum()} test items that fewer than {_RARE} users liked in training, {hit[rare].sum()} were "
            f"found; of the {(~rare).sum()} others, {hit[~rare].sum()}."
        )
    if unknown.any():
        found.append(f"{unknown.sum()} test items nobody liked in training; {hit[unknown].sum()} of them were found.")
    cold = len(judge.ratings.table) - judge.ratings.known
    if cold:
        found.append(f"{cold:,} items of the table were never rated: they are known by name, and never recommended.")
    return tuple(found)


def _caveats(judge: Judge) -> tuple[str, ...]:
    first = (
        "Recommendations shape what people see, and so what the next model learns from: trained again and again on its "
        "own effects, it narrows. Watch coverage and Gini of exposure over the versions, and keep a share of what is "
        "shown that no model chose."
    )
    told = "`users.json` holds what each known user rated: guard it as what it is, data on people."
    kept = (told,) if judge.task.users else ()
    if not judge.ratings.ordered:
        return (first, *kept)
    return (
        first,
        *kept,
        "The latest ratings count most, and in the order in which they are sent. In data where people rate lists that "
        "a site showed them, part of what looks like taste is the order of those lists.",
    )
