"""Evaluate a recommender: against popularity and co-occurrence, by group, and how evenly it shows items."""

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
from training.core.results import Comparison, EmbeddingTable, Evaluation, Figure, SampleScores, Table
from training.evaluation.comparison import compare_means
from training.evaluation.embeddings import axis_extremes_table
from training.learners.recommendations import metrics, sar_baseline
from training.learners.recommendations.dataset import EvalQuery, make_batch
from training.learners.recommendations.interactions import Ratings
from training.learners.recommendations.metrics import Lists
from training.learners.recommendations.plots import draw_exposure
from training.learners.recommendations.sar_baseline import VARIANTS, SarVariant
from training.reporting.embedding_plots import draw_embedding_planes

K = 10
_NETWORK_BATCH = 32
_BASELINE_BATCH = 256
_MAX_RARE_LIKES = 10
_MIN_GROUP = 30
_NETWORK = "this network"
Queries = Sequence[EvalQuery]


@dataclass(frozen=True)
class Recommenders:
    """Recommends by the network and by baselines.

    Attributes:
        ratings: what the recommenders learn from.
        task: the task of the network.
        valid: queries on which settings are chosen.
        test: queries on which results are reported.
        has_epochs: whether there were several epochs to choose from.
    """

    ratings: Ratings
    task: Recommendations
    valid: Queries
    test: Queries
    has_epochs: bool = True

    @cached_property
    def likes(self) -> NDArray[np.int64]:
        """How many users like each item in training."""
        return self.ratings.likes

    @cached_property
    def liked_in_training(self) -> list[NDArray[np.int64]]:
        """Rows of the items that each user liked in training."""
        return [user.items[: user.train_end][user.liked[: user.train_end]] for user in self.ratings.users]

    def by_network(self, module: nn.Module, queries: Queries) -> Lists:
        """Return the lists of a module with the inputs and outputs of the task."""
        lists = []
        for batch in _batches(queries, _NETWORK_BATCH):
            histories = [query.history for query in batch]
            inputs = make_batch(histories, [query.levels for query in batch], histories, self.ratings.known)
            with torch.no_grad():
                rows, scores = module(*(inputs[spec.name] for spec in self.task.inputs))[:2]
            lists.append(np.where(scores[:, :K].numpy() > -1, rows[:, :K].numpy(), -1))
        return np.concatenate(lists)

    def by_popularity(self, queries: Queries) -> Lists:
        """Return the items that most users like in training."""
        return self._top_items(queries, lambda batch: np.tile(self.likes.astype(np.float32), (len(batch), 1)))

    def by_co_occurrence(self, variant: SarVariant, similarity: object, queries: Queries) -> Lists:
        """Return the lists of a variant of SAR."""
        items, half_life = self.ratings.known, variant.half_life
        return self._top_items(
            queries,
            lambda batch: sar_baseline.score_items(similarity, [query.liked for query in batch], items, half_life),
        )

    def _top_items(self, queries: Queries, score: Callable[[Queries], NDArray[np.floating]]) -> Lists:
        lists = [
            metrics.top_k_items(score(batch), [query.history.tolist() for query in batch], K)
            for batch in _batches(queries, _BASELINE_BATCH)
        ]
        return np.concatenate(lists)

    def select_sar(self) -> tuple[SarVariant, dict[str, object]]:
        """Return the variant of SAR that is best on the validation queries, and the similarities of all kinds."""
        kinds = sorted({variant.similarity for variant in VARIANTS})
        similarities: dict[str, object] = {
            kind: sar_baseline.item_similarity(self.liked_in_training, self.ratings.known, kind) for kind in kinds
        }
        scores = {
            variant: mean_ndcg(self.by_co_occurrence(variant, similarities[variant.similarity], self.valid), self.valid)
            for variant in VARIANTS
        }
        return max(scores, key=lambda variant: scores[variant]), similarities


def _batches(queries: Queries, size: int) -> list[Queries]:
    return [queries[start : start + size] for start in range(0, len(queries), size)]


def _targets(queries: Queries) -> list[list[int]]:
    return [[query.target] for query in queries]


def ndcg_per_query(lists: Lists, queries: Queries) -> NDArray[np.floating]:
    """Compute the nDCG of each list."""
    return metrics.ndcg(lists, _targets(queries))


def ndcg_scores(lists: Lists, queries: Queries) -> SampleScores:
    """Return the nDCG of each user."""
    return SampleScores("ndcg_at_10", ndcg_per_query(lists, queries), "test users")


def mean_ndcg(lists: Lists, queries: Queries) -> float:
    """Compute the mean nDCG."""
    return float(ndcg_per_query(lists, queries).mean())


@dataclass(frozen=True)
class _TestResults:
    """Results on the test queries.

    Attributes:
        lists: by the name of each recommender, the network first.
        ndcg: of each query, for the network, tuned SAR, plain SAR and popularity.
        exposures: how often each item is shown, by the name of each recommender.
        seeds: mean nDCG of the network of each seed.
        variant: the tuned variant of SAR.
    """

    lists: dict[str, Lists]
    ndcg: tuple[NDArray[np.floating], ...]
    exposures: dict[str, NDArray[np.int64]]
    seeds: list[float]
    variant: SarVariant

    @property
    def network_lists(self) -> Lists:
        return self.lists[_NETWORK]

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        network, tuned, _, popularity = self.ndcg
        scores = SampleScores("ndcg_at_10", network, "test users")
        return (
            compare_means(scores, "recommending the most liked items to everyone", popularity, is_constant=True),
            compare_means(scores, "co-occurrence of items (SAR, tuned)", tuned),
        )


def _run_on_test(recommenders: Recommenders, modules: Sequence[nn.Module]) -> _TestResults:
    queries = recommenders.test
    tuned, similarities = recommenders.select_sar()
    plain = SarVariant()

    def co_occurrence(variant: SarVariant) -> Lists:
        return recommenders.by_co_occurrence(variant, similarities[variant.similarity], queries)

    lists = {
        _NETWORK: recommenders.by_network(modules[0], queries),
        f"co-occurrence (SAR), tuned: {tuned.description}": co_occurrence(tuned),
        f"co-occurrence (SAR), plain: {plain.description}": co_occurrence(plain),
        "popularity": recommenders.by_popularity(queries),
    }
    ndcg = tuple(ndcg_per_query(recommended, queries) for recommended in lists.values())
    others = [mean_ndcg(recommenders.by_network(module, queries), queries) for module in modules[1:]]
    items = recommenders.ratings.known
    exposures = {name: metrics.exposure(recommended, items) for name, recommended in lists.items()}
    return _TestResults(lists, ndcg, exposures, [float(ndcg[0].mean()), *others], tuned)


def evaluate_recommender(
    recommenders: Recommenders,
    modules: Sequence[nn.Module],
    item_embeddings: EmbeddingTable,
    feature_columns: Sequence[str],
) -> Evaluation:
    """Evaluate the first of the modules, one per seed, and how much the others differ.

    Args:
        recommenders: the queries and baselines.
        modules: the exported one, then those of other seeds.
        item_embeddings: of the first network.
        feature_columns: columns of the items to report the metrics by.
    """
    results = _run_on_test(recommenders, modules)
    lists = results.network_lists
    embeddings = [_most_liked(item_embeddings, recommenders.likes)]
    return Evaluation(
        metrics=_metrics(recommenders, results),
        notes=_notes(recommenders, results),
        tables=(
            _comparison_table(recommenders, results.lists),
            _exposure_table(recommenders, results.exposures),
            _history_table(recommenders, results),
            *(_feature_table(recommenders, lists, name) for name in feature_columns),
            _example_table(recommenders, lists),
            axis_extremes_table(embeddings, 4),
        ),
        figures=(
            Figure(
                "Popularity and exposure",
                draw_exposure(results.exposures, recommenders.likes),
                "Left: how often an item is recommended, by the number of users who like it. Right: the "
                "fraction of all recommendations that the most shown items receive (Lorenz curves; dotted: uniform).",
            ),
            Figure(
                "Embeddings of the items",
                draw_embedding_planes(embeddings, columns=1),
                "The most liked items along the first two principal axes of their embeddings.",
            ),
        ),
        failures=_failures(recommenders, lists, results.exposures[_NETWORK]),
        caveats=_caveats(recommenders),
        comparisons=results.comparisons,
    )


def _metrics(recommenders: Recommenders, results: _TestResults) -> tuple[Metric, ...]:
    queries, lists, exposures = recommenders.test, results.network_lists, results.exposures[_NETWORK]
    network, tuned, plain, popularity = results.ndcg
    protocol = f"the last liked item of {len(queries):,} users; all items that they had not rated are candidates"
    low, high = metrics.bootstrap_interval(network)
    rows = [
        ("ndcg_at_10", network.mean(), f"{protocol}; 95 % interval over users {low:.4f} to {high:.4f}"),
        (
            "hit_rate_at_10",
            metrics.hit_rate(lists, _targets(queries)),
            f"{protocol}; equals the recall, since each user has one target",
        ),
        ("sar_ndcg_at_10", tuned.mean(), f"co-occurrence, best of {len(VARIANTS)} variants on validation; {protocol}"),
        ("plain_sar_ndcg_at_10", plain.mean(), f"co-occurrence by Jaccard, equal affinities; {protocol}"),
        ("popularity_ndcg_at_10", popularity.mean(), f"the most liked items; {protocol}"),
        *(
            (f"ndcg_over_{name}", network.mean() / other.mean(), f"ndcg_at_10 / {name}_ndcg_at_10")
            for name, other in (("sar", tuned), ("popularity", popularity))
            if other.any()  # A ratio to 0 says nothing.
        ),
        (
            "coverage",
            metrics.coverage(exposures),
            f"fraction of the items in any of the {len(queries):,} lists of {_length(lists)}",
        ),
        ("gini_of_exposure", metrics.gini(exposures), "0: all items are shown equally often, 1: only one is shown"),
        (
            "mean_popularity",
            metrics.mean_popularity(lists, recommenders.likes),
            f"how many users like a recommended item, on average over the lists of {_length(lists)}",
        ),
    ]
    if (seeds := len(results.seeds)) > 1:
        deviation = float(np.std(results.seeds, ddof=1))
        rows += [
            ("ndcg_at_10_mean", float(np.mean(results.seeds)), f"mean over {seeds} seeds; {protocol}"),
            ("ndcg_at_10_sd", deviation, f"standard deviation over {seeds} seeds"),
        ]
    return tuple(Metric(name=name, value=float(value), protocol=how) for name, value, how in rows)


def _notes(recommenders: Recommenders, results: _TestResults) -> tuple[str, ...]:
    chosen = "The best variant of co-occurrence was chosen"
    if recommenders.has_epochs:
        chosen = "The best epoch and the best variant of co-occurrence were both chosen"
    order = "by time" if recommenders.ratings.ordered else "by a hash, since the data has no times"
    return (
        f"Split: each user's ratings are ordered {order}. The last liked item is for testing, the one before it for "
        "validation, and everything before that for training; what lies between or after is not used. The network and "
        f"co-occurrence learn from the same ratings and get the same histories (everything before the target). "
        f"{chosen} on the validation items.",
        f"The best of {len(VARIANTS)} variants of co-occurrence is: {results.variant.description}.",
        "Each user is split in time separately: training includes ratings of other users that are later than a "
        "user's test item.",
    )


def _comparison_table(recommenders: Recommenders, lists: dict[str, Lists]) -> Table:
    targets = _targets(recommenders.test)
    rows = []
    for name, recommended in lists.items():
        exposures = metrics.exposure(recommended, recommenders.ratings.known)
        ndcg = metrics.ndcg(recommended, targets)
        low, high = metrics.bootstrap_interval(ndcg)
        rows.append(
            (
                name,
                f"{ndcg.mean():.4f} ({low:.4f}–{high:.4f})",
                f"{metrics.hit_rate(recommended, targets):.4f}",
                f"{metrics.coverage(exposures):.3f}",
                f"{metrics.gini(exposures):.3f}",
                f"{metrics.mean_popularity(recommended, recommenders.likes):.1f}",
            )
        )
    header = ("recommender", "nDCG@10", "hit rate@10", "coverage", "Gini of exposure", "mean popularity")
    return Table("Comparison with baselines without a network", header, tuple(rows))


def _exposure_table(recommenders: Recommenders, exposures: dict[str, NDArray[np.int64]]) -> Table:
    likes = recommenders.likes
    top = partial(metrics.exposure_of_most_popular, likes=likes)
    rows = tuple(
        (name, f"{top(counts, fraction=0.01):.1%}", f"{top(counts, fraction=0.1):.1%}", f"{(counts > 0).sum():,}")
        for name, counts in {**exposures, "likes in training": likes}.items()
    )
    header = ("recommender", "most popular 1 % of items", "most popular 10 %", "items shown")
    return Table("Exposure by popularity", header, rows, "Fraction of the recommendations to all test users.")


def _history_table(recommenders: Recommenders, results: _TestResults) -> Table:
    sizes = np.array([len(query.liked) for query in recommenders.test])
    edges = [0, *np.unique(np.quantile(sizes, [0.25, 0.5, 0.75]).round()).astype(int).tolist(), int(sizes.max())]
    network, tuned, _, popularity = results.ndcg
    has_hit = metrics.has_hit(results.network_lists, _targets(recommenders.test))
    rows = []
    for low, high in pairwise(edges):
        members = (sizes > low) & (sizes <= high)
        if members.any():
            count = _mark_small(int(members.sum()))
            means = [f"{ndcg[members].mean():.4f}" for ndcg in (network, tuned, popularity)]
            rows.append((f"{low + 1} to {high}", count, *means, f"{has_hit[members].mean():.3f}"))
    header = ("items liked before", "users", "nDCG@10", "co-occurrence", "popularity", "hit rate@10")
    return Table("By history length", header, tuple(rows), _note_on_small(rows, "users"))


def _mark_small(count: int) -> str:
    return f"{count}{'*' if count < _MIN_GROUP else ''}"


def _note_on_small(rows: Sequence[tuple[str, ...]], what: str) -> str:
    """Explain the mark of small groups, if any is marked; their counts are in the second column."""
    is_marked = any(row[1].endswith("*") for row in rows)
    return f"* fewer than {_MIN_GROUP} {what}: the figures are uncertain." if is_marked else ""


def _feature_table(recommenders: Recommenders, lists: Lists, column: str) -> Table:
    """Tabulate the metrics by the features (genres) of the target."""
    features = [_split_features(value) for value in recommenders.ratings.table.details[column]]
    queries = recommenders.test
    features_of_targets = [features[query.target] for query in queries]
    ndcg = ndcg_per_query(lists, queries)
    has_hit = metrics.has_hit(lists, _targets(queries))
    counts = Counter(feature for row in features_of_targets for feature in row)
    recommended = lists[lists >= 0]
    shown = Counter(feature for row in recommended for feature in features[row])
    rows = []
    for feature, count in counts.most_common(20):
        members = np.array([feature in row for row in features_of_targets])
        rows.append(
            (
                feature,
                _mark_small(count),
                f"{ndcg[members].mean():.4f}",
                f"{has_hit[members].mean():.3f}",
                f"{count / len(queries):.1%}",
                f"{shown[feature] / max(1, len(recommended)):.1%}",
            )
        )
    header = (column, "test items", "nDCG@10", "hit rate@10", "fraction of test items", "fraction of recommendations")
    if not rows:
        return Table(f"By {column}", header, (), f"No test item has a value of {column}.")
    note = f"An item may have several. {_note_on_small(rows, 'test items')}".strip()
    return Table(f"By {column}", header, tuple(rows), note)


def _split_features(value: str) -> list[str]:
    return [part.strip() for part in value.split("|") if part.strip()]


def _example_table(recommenders: Recommenders, lists: Lists) -> Table:
    """Tabulate recommendations for a few users, evenly spread from the first to the last."""
    titles, queries = recommenders.ratings.table.titles, recommenders.test
    rows = []
    for index in np.linspace(0, len(queries) - 1, min(5, len(queries))).astype(int).tolist():
        query = queries[index]
        liked = ", ".join(titles[row] for row in query.liked[-3:])
        best = ", ".join(titles[row] for row in lists[index][:5] if row >= 0)
        is_hit = "yes" if query.target in lists[index] else "no"
        rows.append((query.user.name, liked, best, titles[query.target], is_hit))
    header = ("user", "liked last", "first recommendations", "liked next", f"in the list of {_length(lists)}")
    return Table("Examples", header, tuple(rows))


def _most_liked(table: EmbeddingTable, likes: NDArray[np.int64], count: int = 300) -> EmbeddingTable:
    """Return the embeddings of the most liked items; those of the others are hardly trained."""
    rows = np.argsort(-likes, kind="stable")[:count].tolist()
    names = table.names or tuple(map(str, table.values))
    return EmbeddingTable(
        table.field, tuple(table.values[row] for row in rows), table.vectors[rows], tuple(names[row] for row in rows)
    )


def _failures(recommenders: Recommenders, lists: Lists, exposures: NDArray[np.int64]) -> tuple[str, ...]:
    """Return sentences on what is missed and on items that are never shown; none on what does not happen."""
    queries, ratings = recommenders.test, recommenders.ratings
    has_hit, length = metrics.has_hit(lists, _targets(queries)), _length(lists)
    missed, never_shown = int((~has_hit).sum()), int((exposures == 0).sum())
    never_rated = len(ratings.table) - ratings.known
    sentences = []
    if missed:
        sentences.append(
            f"For {missed:,} of {len(queries):,} test users, the item that they liked next is not among the {length} "
            "recommendations."
        )
    if never_shown:
        sentences.append(
            f"{never_shown:,} of {len(exposures):,} items are not in any of the {len(lists):,} lists of {length}."
        )
    sentences += _describe_rare_targets(np.array([recommenders.likes[query.target] for query in queries]), has_hit)
    if never_rated:
        sentences.append(
            f"{never_rated:,} of {len(ratings.table):,} items of the table were never rated and are not recommended."
        )
    return tuple(sentences)


def _describe_rare_targets(likes: NDArray[np.integer], has_hit: NDArray[np.bool_]) -> list[str]:
    """Return sentences on the test items that few or no users like in training, if some are not recommended."""
    rare, unknown = likes < _MAX_RARE_LIKES, likes == 0
    sentences = []
    if not has_hit[rare].all():
        others = f"; of the others, {_hits(has_hit[~rare])}" if not rare.all() else ""
        sentences.append(
            f"Of the test items that fewer than {_MAX_RARE_LIKES} users like in training, {_hits(has_hit[rare])} are "
            f"recommended{others}."
        )
    if not has_hit[unknown].all():
        sentences.append(
            f"Of the test items that no user likes in training, {_hits(has_hit[unknown])} are recommended."
        )
    return sentences


def _hits(has_hit: NDArray[np.bool_]) -> str:
    return f"{has_hit.sum():,} of {len(has_hit):,}"


def _length(lists: Lists) -> int:
    """Return how many items a list has: 10, or all items if there are fewer."""
    return int(lists.shape[1])


def _caveats(recommenders: Recommenders) -> tuple[str, ...]:
    caveats = [
        "Recommendations influence what users see, and so the data of the next model: models that are retrained "
        "on their own effects recommend fewer and fewer items. Monitor the coverage and the Gini coefficient of "
        "exposure across versions, and also show some items that were not selected by a model."
    ]
    if recommenders.task.users:
        caveats.append("`users.json` contains the ratings of each known user: protect it as personal data.")
    if recommenders.ratings.ordered:
        caveats.append(
            "The latest ratings have the largest weight, in the order in which they are sent. If users rated lists "
            "that a site showed them, part of what the model learns is the order of those lists."
        )
    return tuple(caveats)
