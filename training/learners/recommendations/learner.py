"""How recommendations are learnt: from what people liked next, with popularity and co-occurrence beside it to beat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from training.core.results import EmbeddingTable, Evaluation, Trained
from training.core.sources import SourceFetcher
from training.engine.inference import iterate_outputs
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime
from training.learners.recommendations.dataset import NO_TARGET, EvalQueries, HistorySamples, batch_of
from training.learners.recommendations.evaluate import Judge, evaluate_recommender
from training.learners.recommendations.goldens import clear_requests
from training.learners.recommendations.interactions import ColumnNames, Person, kinds_of, read_ratings
from training.learners.recommendations.network import ServedTaste, TasteNetwork

INPUTS = ("history", "levels", "candidates", "similar")
_BATCH = 64
_CPU = Runtime(torch.device("cpu"))


@dataclass(frozen=True)
class Options:
    """What can be chosen for recommendations."""

    user_column: str = option("", "the column of users, where its name is not a usual one")
    item_column: str = option("", "the column of items, where its name is not a usual one")
    rating_column: str = option("", "the column of ratings, where its name is not a usual one")
    time_column: str = option("", "the column of times, where its name is not a usual one")
    liked: float = option(0.0, "ratings from this on say that somebody liked an item; 0: all do")
    features: tuple[str, ...] = option((), "columns of the items' table that the network reads too (genres)")
    size: int = option(64, "numbers in a taste")
    window: int = option(128, "how much of a history a training sample has")
    ahead: int = option(3, "how many items that were liked next a training sample is to foresee")
    dropped: float = option(0.3, "share of a taste that is dropped in training")
    forgotten: float = option(0.2, "share of a history that is forgotten in training")
    unrated: float = option(0.1, "share of the liked items of a history whose rating is hidden in training")
    keep_users: bool = option(
        True, "keep what each user rated in the model, so that they can be asked for by their ids"
    )


class RecommendationsLearner(Learner):
    """Learns what people like next, from what they rated or chose."""

    summary: ClassVar[str] = "what will a user like next? from who liked what, with when if known"
    data_kind: ClassVar[str] = "a CSV or Parquet file of users, items and, if known, ratings and times, or its folder"
    default_settings: ClassVar[Settings] = Settings(
        epochs=12, batch_size=256, rate=5e-3, weight_decay=0.1, label_smoothing=0.0, precision="fp32", threads=1
    )
    default_options: ClassVar[Options] = Options()
    hub_tag: ClassVar[str] = "other"

    def __init__(self, data: Path, settings: Settings, options: Options) -> None:
        self.trained_with, self.chosen = settings, options
        names = ColumnNames(options.user_column, options.item_column, options.rating_column, options.time_column)
        self.ratings = read_ratings(data, names, liked=options.liked, seed=settings.seed)
        self.features, self.feature_names = self._features()
        self.samples: HistorySamples = HistorySamples(
            self.ratings, window=options.window, ahead=options.ahead, unrated=options.unrated
        )
        if not len(self.samples):
            raise CannotTrain(f"{data}: nobody liked two items, so there is nothing to learn from.")
        self.validating, self.testing = EvalQueries(self.ratings, test=False), EvalQueries(self.ratings, test=True)
        self.task: Recommendations = Recommendations(
            known=self.ratings.known,
            scale=self.ratings.scale,
            ordered=self.ratings.ordered,
            items=self.ratings.table,
            users={each.name: _numbered(each) for each in self.ratings.people} if options.keep_users else {},
            example_user=self.testing.asked[0].person.name if options.keep_users else "",
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
        """Reads the tables. Raises CannotTrain."""
        for name, least in (("size", 1), ("window", 1), ("ahead", 1)):
            if getattr(options, name) < least:
                raise CannotTrain(f"--{name} is to be {least} or more.")
        if options.window > MAX_HISTORY:
            raise CannotTrain(f"--window is to be {MAX_HISTORY} at most, as much as the graph reads.")
        return cls(data, settings, options)

    def _features(self) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Each rated item's share of each kind of each chosen column, (items, kinds), and the kinds."""
        table, known = self.ratings.table, self.ratings.known
        parts, names = [np.zeros((known, 0), np.float32)], list[str]()
        for name in self.chosen.features:
            if name not in table.details:
                there = ", ".join(table.details) or "none"
                raise CannotTrain(f"--features {name}: the items' table has no such column; its columns are: {there}.")
            kinds, shares = kinds_of(table.details[name][:known])
            parts.append(shares)
            names += kinds
        return np.concatenate(parts, axis=1), tuple(names)

    def data_summary(self) -> str:
        """Counts, the split, and what was found on reading."""
        people, liked = self.ratings.people, int(self.ratings.likes.sum())
        total = sum(len(person.items) for person in people)
        scale = self.ratings.scale
        what = (
            "chosen"
            if scale is None
            else "all ratings count as liked, low ones too: --liked N has only N or more do so"
        )
        if scale and scale.liked_from > 1:
            what = f"liked: a rating of {scale.rating(scale.liked_from):g} or more"
        when = "by time" if self.ratings.ordered else "by a hash, since there are no times"
        counts = (
            f"{total:,} ratings by {len(people):,} users of {self.ratings.known:,} items ({what}); {liked:,} liked "
            f"ones to train on; the last two of {len(self.testing):,} users held out, {when}."
        )
        return "\n".join([counts, *self.ratings.notices])

    @property
    def likes(self) -> Tensor:
        """How many people liked each item in training, float32 (items,)."""
        return torch.from_numpy(self.ratings.likes).float()

    def network(self) -> nn.Module:
        """Tastes from histories."""
        options, scale = self.chosen, self.ratings.scale
        return TasteNetwork(
            torch.from_numpy(self.features),
            self.likes,
            size=options.size,
            levels=scale.levels if scale else 0,
            liked_from=scale.liked_from if scale else 1,
            ordered=self.ratings.ordered,
            dropped=options.dropped,
            forgotten=options.forgotten,
        )

    def stages(self) -> tuple[Stage, ...]:
        """One."""
        return (Stage("all", self.trained_with.epochs, self.trained_with.rate),)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """All parameters alike."""
        return [ParamGroup(tuple(parameter for parameter in network.parameters()))]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy of the items that were liked next, among all that were not yet rated."""
        expected = network(*(batch[name] for name in INPUTS))[0].log_softmax(dim=1)
        targets = batch["target"]
        there = targets != NO_TARGET
        mean: Tensor = (expected.gather(1, targets.clamp(min=0)) * there).sum() / there.sum()
        return -mean

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """NDCG and hit rate at 10, and cross entropy, of the validation items among all items not yet rated."""
        sums = torch.zeros(4, device=runtime.device)
        for batch, outputs in iterate_outputs(network, INPUTS, self.validating, runtime, batch_size=_BATCH):
            logits, target = outputs[0].float(), batch["target"]
            ours = logits.gather(1, target)
            rank = (logits > ours).sum(dim=1)
            gain = torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0.0)
            surprise = -logits.log_softmax(dim=1).gather(1, target)
            sums += torch.stack([gain.sum(), (rank < 10).sum(), surprise.sum(), torch.tensor(len(rank))])
        ndcg, hits, surprise, count = runtime.all_reduce_sum(sums).tolist()
        return {"ndcg_at_10": ndcg / count, "hit_rate_at_10": hits / count, "loss": surprise / count}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """With tables of 16 bits."""
        scale = self.ratings.scale
        liked_from = scale.liked_from if scale else 1
        exact = cast(TasteNetwork, network).float().cpu().eval()
        return ServedTaste(exact, self.likes, most=self.task.list_length, liked_from=liked_from).eval()

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """Figures on the test items, beside co-occurrence and popularity; by groups; who gets shown; examples."""
        others = [self.to_inference_module(each.network) for each in trained[1:]]
        judge = Judge(self.ratings, self.task, self.validating.asked, self.testing.asked)
        return evaluate_recommender(
            judge, [served, *others], self.embeddings(trained[0].network), self.chosen.features[:1]
        )

    def validation_inputs(self, count: int) -> Arrays:
        """The last moments of as many users, evenly from the first to the last, by the same bucket."""
        places = np.linspace(0, len(self.testing) - 1, min(count, len(self.testing))).astype(np.int64).tolist()
        batch = self.testing.__getitems__([(0, place) for place in places])
        return {name: batch[name].numpy() for name in INPUTS}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """For a user, for ratings, for nobody in particular, and like an item: those whose lists have no near ties."""
        return clear_requests(replace(self.task), served)

    def embeddings(self, network: nn.Module) -> Sequence[EmbeddingTable]:
        """What each item asks of a taste, and each user's taste; but for a bias, their product orders the items."""
        served = cast(ServedTaste, self.to_inference_module(network))
        table, people, known = self.ratings.table, self.ratings.people, self.ratings.known
        tastes = []
        with torch.no_grad():
            for person in people:
                batch = batch_of([person.items], [person.levels], [person.items[:0]], known)
                tastes.append(served.taste(batch["history"], batch["levels"])[0].numpy())
        items = EmbeddingTable("item", table.ids[:known], served.wanted.numpy(), table.titles[:known])
        users = EmbeddingTable("user", tuple(person.name for person in people), np.concatenate(tastes))
        return [items, users]


def _numbered(person: Person) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple((person.items + 1).tolist()), tuple(person.levels.tolist())
