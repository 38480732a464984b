"""Trains a recommender on what users liked next, with popularity and co-occurrence as baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks._items import MAX_HISTORY
from tasks.contract import Arrays, Task
from tasks.recommendations import Recommendations
from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.results import EmbeddingTable, Evaluation, SampleScores, Trained
from training.core.sources import SourceFetcher
from training.data.delimited import CsvFormat, CsvOptions
from training.engine.inference import iterate_outputs
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime
from training.learners.recommendations.dataset import NO_TARGET, EvalQueries, HistorySamples, make_batch
from training.learners.recommendations.evaluate import Recommenders, evaluate_recommender, ndcg_scores
from training.learners.recommendations.goldens import select_golden_requests
from training.learners.recommendations.interactions import ColumnNames, TableFormat, User, encode_features, read_ratings
from training.learners.recommendations.network import RecommenderNetwork, ServedRecommender

INPUTS = ("history", "levels", "candidates", "similar")
_BATCH = 64
_K = 10


@dataclass(frozen=True)
class Options(CsvOptions):
    """Options of the recommendations learner."""

    user_column: str = option("", "column of users; empty = guessed from its name")
    item_column: str = option("", "column of items; empty = guessed from its name")
    rating_column: str = option("", "column of ratings; empty = guessed from its name")
    time_column: str = option("", "column of times; empty = guessed from its name")
    decimal: str = option("", "decimal sign of ratings, a point or a comma; empty = recognised")
    dayfirst: bool | None = option(None, "whether 1/2/2020 is the first of February, where no time shows it")
    liked: float = option(0.0, "minimum rating of a liked item; 0 = all rated items count as liked")
    features: tuple[str, ...] = option((), "columns of the item table to use as features (genres)")
    embedding_size: int = option(64, "size of the embeddings of users and items", at_least=1)
    window: int = option(128, "maximum number of items in the history of a training sample", at_least=1)
    targets_per_sample: int = option(3, "number of next liked items that a training sample predicts", at_least=1)
    dropout: float = option(0.3, "dropout of the user embedding", at_least=0, below=1)
    history_dropout: float = option(0.2, "fraction of the history items dropped in training", at_least=0, below=1)
    rating_dropout: float = option(
        0.1, "fraction of the liked history items whose rating is hidden in training", at_least=0, at_most=1
    )
    keep_users: bool = option(True, "keep each user's ratings in the model, so that requests can name users by id")


class RecommendationsLearner(Learner):
    """Learns what users like next, from what they rated or chose."""

    summary: ClassVar[str] = "predict what a user will like next, from ratings or choices"
    data_kind: ClassVar[str] = "a CSV or Parquet file of users, items and optionally ratings and times, or its folder"
    default_settings: ClassVar[Settings] = Settings(
        epochs=12, batch_size=256, rate=5e-3, weight_decay=0.1, label_smoothing=0.0, precision="fp32", threads=1
    )
    default_options: ClassVar[Options] = Options()
    hub_tag: ClassVar[str] = "other"

    def __init__(self, data: Path, settings: Settings, options: Options) -> None:
        self.settings, self.options = settings, options
        names = ColumnNames(options.user_column, options.item_column, options.rating_column, options.time_column)
        csv = CsvFormat(options.separator, options.encoding)
        form = TableFormat(csv, options.decimal, options.dayfirst)
        self.ratings = read_ratings(data, names, form, liked=options.liked, seed=settings.seed)
        self.features = self._encode_features()
        self.samples: HistorySamples = HistorySamples(
            self.ratings,
            window=options.window,
            targets_per_sample=options.targets_per_sample,
            rating_dropout=options.rating_dropout,
        )
        if not len(self.samples):
            raise CannotTrain(f"{data}: no user likes two items, so there is nothing to learn from.")
        self.valid, self.test = EvalQueries(self.ratings, test=False), EvalQueries(self.ratings, test=True)
        self.task: Recommendations = Recommendations(
            known=self.ratings.known,
            scale=self.ratings.scale,
            ordered=self.ratings.ordered,
            items=self.ratings.table,
            users={user.name: _item_numbers_and_levels(user) for user in self.ratings.users}
            if options.keep_users
            else {},
            example_user=self.test.queries[0].user.name if options.keep_users else "",
            example_items=tuple(self.ratings.table.ids[row] for row in np.argsort(-self.ratings.likes)[:2]),
        )

    @classmethod
    def from_data(
        cls,
        data: Path,
        settings: Settings,
        options: Options,
        fetcher: SourceFetcher,  # noqa: ARG003
    ) -> "RecommendationsLearner":
        """Read the tables. Raises CannotTrain."""
        for name in ("embedding_size", "window", "targets_per_sample"):
            if getattr(options, name) < 1:
                raise CannotTrain(f"--{name.replace('_', '-')} must be at least 1.")
        if options.window > MAX_HISTORY:
            raise CannotTrain(f"--window must be at most {MAX_HISTORY}, the history that the graph reads.")
        return cls(data, settings, options)

    def _encode_features(self) -> NDArray[np.float32]:
        """Return the features of the rated items from the chosen columns, (items, features), each row's sum 1 or 0."""
        table, known = self.ratings.table, self.ratings.known
        parts = [np.zeros((known, 0), np.float32)]
        for name in self.options.features:
            if name not in table.details:
                columns = ", ".join(table.details) or "none"
                raise CannotTrain(f"--features {name}: the item table has no such column; its columns are: {columns}.")
            parts.append(encode_features(table.details[name][:known])[1])
        return np.concatenate(parts, axis=1)

    def data_summary(self) -> str:
        """Describe the ratings and the split, with warnings from reading the tables."""
        users, scale = self.ratings.users, self.ratings.scale
        total, liked = sum(len(user.items) for user in users), int(self.ratings.likes.sum())
        if scale is None:
            what = "chosen"
        elif scale.liked_from > 1:
            what = f"liked: a rating of {scale.rating(scale.liked_from):g} or more"
        else:
            what = "all ratings count as liked, low ones too; with --liked N, only N or more do"
        order = "by time" if self.ratings.ordered else "by a hash, since there are no times"
        counts = (
            f"{total:,} ratings by {len(users):,} users of {self.ratings.known:,} items ({what}); {liked:,} liked "
            f"ones to train on; the last two of {len(self.test):,} users held out, {order}."
        )
        return "\n".join([counts, *self.ratings.warnings])

    @property
    def likes(self) -> Tensor:
        """How many users like each item in training, float32 (items,)."""
        return torch.from_numpy(self.ratings.likes).float()

    @property
    def _liked_from(self) -> int:
        return self.ratings.scale.liked_from if self.ratings.scale else 1

    def network(self) -> nn.Module:
        """Return a new network."""
        options, scale = self.options, self.ratings.scale
        return RecommenderNetwork(
            torch.from_numpy(self.features),
            self.likes,
            embedding_size=options.embedding_size,
            levels=scale.levels if scale else 0,
            liked_from=self._liked_from,
            ordered=self.ratings.ordered,
            dropout=options.dropout,
            history_dropout=options.history_dropout,
        )

    def stages(self) -> tuple[Stage, ...]:
        """Return the only stage."""
        return (Stage("all", self.settings.epochs, self.settings.rate),)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """Return all parameters as one group."""
        return [ParamGroup(tuple(network.parameters()))]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the items that were liked next, among all items not rated before."""
        log_probabilities = network(*(batch[name] for name in INPUTS))[0].log_softmax(dim=1)
        targets = batch["target"]
        is_target = targets != NO_TARGET
        mean: Tensor = (log_probabilities.gather(1, targets.clamp(min=0)) * is_target).sum() / is_target.sum()
        return -mean

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return nDCG and hit rate at 10, and cross-entropy, of the validation items among all items not yet rated."""
        sums = torch.zeros(4, device=runtime.device)
        for batch, outputs in iterate_outputs(network, INPUTS, self.valid, runtime, batch_size=_BATCH):
            logits, target = outputs[0].float(), batch["target"]
            rank = (logits > logits.gather(1, target)).sum(dim=1)
            is_hit = rank < _K
            ndcg = torch.where(is_hit, 1 / torch.log2(rank + 2.0), 0.0)
            loss = -logits.log_softmax(dim=1).gather(1, target)
            sums += torch.stack([ndcg.sum(), is_hit.sum(), loss.sum(), torch.ones_like(loss).sum()])
        ndcg_sum, hits, loss_sum, count = runtime.all_reduce_sum(sums).tolist()
        return {"ndcg_at_10": ndcg_sum / count, "hit_rate_at_10": hits / count, "loss": loss_sum / count}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, with embeddings rounded to float16."""
        exact = cast(RecommenderNetwork, network).float().cpu().eval()
        return ServedRecommender(exact, self.likes, k=self.task.list_length, liked_from=self._liked_from).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Evaluate on the test items, beside co-occurrence and popularity, by groups, with exposure and examples."""
        others = [self.to_inference_module(run.network) for run in trained[1:]]
        items = self.embeddings(trained[0].network)[0]
        return evaluate_recommender(self._recommenders, [exported, *others], items, self.options.features[:1])

    @property
    def _recommenders(self) -> Recommenders:
        has_epochs = self.settings.epochs > 1
        return Recommenders(self.ratings, self.task, self.valid.queries, self.test.queries, has_epochs)

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return the nDCG of each test user."""
        queries = self.test.queries
        return ndcg_scores(self._recommenders.by_network(exported, queries), queries)

    def is_comparable(self, previous: Task) -> bool:
        """Whether that task numbers the same items and ratings in the same way."""
        if not super().is_comparable(previous):
            return False
        task, other, known = self.task, cast(Recommendations, previous), self.ratings.known
        return (
            other.known == known
            and other.items.ids[:known] == task.items.ids[:known]
            and (other.scale, other.ordered) == (task.scale, task.ordered)
        )

    def validation_inputs(self, count: int) -> Arrays:
        """Return test queries of up to `count` users, evenly spread from the first to the last, in one bucket."""
        indices = np.linspace(0, len(self.test) - 1, min(count, len(self.test))).astype(np.int64).tolist()
        batch = self.test.__getitems__([(0, index) for index in indices])
        return {name: batch[name].numpy() for name in INPUTS}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests by user, by ratings, without a history and by a similar item, all without close scores."""
        return select_golden_requests(self.task, served)

    def embeddings(self, network: nn.Module) -> Sequence[EmbeddingTable]:
        """Return the embeddings of items and of users; except for a bias, their product ranks the items."""
        served = cast(ServedRecommender, self.to_inference_module(network))
        table, users, known = self.ratings.table, self.ratings.users, self.ratings.known
        vectors = []
        with torch.no_grad():
            for user in users:
                batch = make_batch([user.items], [user.levels], [user.items[:0]], known)
                vectors.append(served.user_embedding(batch["history"], batch["levels"])[0].numpy())
        items = EmbeddingTable("item", table.ids[:known], served.target_embeddings.numpy(), table.titles[:known])
        return [items, EmbeddingTable("user", tuple(user.name for user in users), np.concatenate(vectors))]


def _item_numbers_and_levels(user: User) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple((user.items + 1).tolist()), tuple(user.levels.tolist())
