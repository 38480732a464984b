"""The language model as something to train, to keep and to start from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks._text import load_tokenizer
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.engine import checkpoint
from training.engine.inference import iterate_outputs
from training.engine.learner import Stage, Trainable
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime
from training.learners.sentiment.awd_lstm import Dropouts, Encoder, LanguageModel, Sizes
from training.learners.sentiment.dataset import Stream, Tokens, counts

_WEIGHTS, _TOKENIZER, _ABOUT = "language_model.pt", "tokenizer.json", "language_model.json"
_ACTIVATION, _CHANGE = 2.0, 1.0
"""Of the penalties on large outputs and on their change from token to token (Merity et al. 2017, α and β)."""


@dataclass(frozen=True)
class Stored:
    """A language model that others start from: its tokenizer, its sizes and its weights."""

    tokenizer: str
    sizes: Sizes
    frequent: int
    order: tuple[int, ...]
    weights: dict[str, Tensor]


def write(folder: Path, stored: Stored, about: dict[str, Any]) -> None:
    """Writes a language model into the folder; `about` says what it was trained on and what it reaches."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _TOKENIZER).write_text(stored.tokenizer, encoding="utf-8")
    state = {"weights": stored.weights, "order": list(stored.order), "frequent": stored.frequent}
    checkpoint.save(folder / _WEIGHTS, state)
    told = {"sizes": asdict(stored.sizes), **about}
    (folder / _ABOUT).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Stored:
    """The language model in a folder. Raises CannotTrain where there is none."""
    try:
        tokenizer = (folder / _TOKENIZER).read_text("utf-8")
        sizes = Sizes(**json.loads((folder / _ABOUT).read_bytes())["sizes"])
        load_tokenizer(tokenizer)
    except Exception as error:  # tokenizers raises a bare Exception where the file is none of its own.
        raise CannotTrain(f"{folder} holds no language model: {error}.") from None
    state = checkpoint.load(folder / _WEIGHTS)
    return Stored(tokenizer, sizes, state["frequent"], tuple(state["order"]), state["weights"])


class LanguageModelling(Trainable):
    """Trains a language model on texts, from nothing or from a stored one."""

    lower_is_better = True

    def __init__(
        self,
        texts: Sequence[Tokens],
        held_out: Sequence[Tokens],
        tokenizer: str,
        sizes: Sizes,
        dropouts: Dropouts,
        settings: Settings,
        *,
        window: int,
        frequent: int,
        start: Stored | None = None,
    ) -> None:
        self.sizes, self.dropouts, self.settings = sizes, dropouts, settings
        self.tokenizer, self.start = tokenizer, start
        rows = settings.batch_size
        self.samples = Stream(texts, rows=rows, window=window, seed=settings.seed)
        self.held_out = Stream(held_out, rows=min(32, rows), window=window, seed=0)
        self.frequent = start.frequent if start else min(frequent, sizes.vocabulary)
        self.order = start.order if start else _by_frequency(texts, sizes.vocabulary)

    def network(self) -> nn.Module:
        """The language model, new or as it was stored."""
        encoder = Encoder(self.sizes, self.dropouts)
        network = LanguageModel(encoder, self.order, self.frequent, self.settings.batch_size)
        if self.start:
            network.load_state_dict(self.start.weights, strict=False)
        return network

    def stages(self) -> tuple[Stage, ...]:
        """One: everything learns at one rate."""
        return (Stage("language model", self.settings.epochs, self.settings.rate),)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """All parameters."""
        return [ParamGroup(tuple(network.parameters()))]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, with the penalties on the last layer's outputs."""
        losses, _, raw, dropped = network(batch["tokens"], batch["begins"])
        penalty = _ACTIVATION * dropped.float().pow(2).mean()
        if raw.shape[1] > 1:
            penalty = penalty + _CHANGE * (raw[:, 1:] - raw[:, :-1]).float().pow(2).mean()
        total: Tensor = losses.mean() + penalty
        return total

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Perplexity a token, and how often the next one was the likeliest."""
        trained = [getattr(network, name).clone() for name in network.names]  # type: ignore[union-attr]
        sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
        pieces = iterate_outputs(network, ("tokens", "begins"), self.held_out, runtime, batch_size=self.held_out.rows)
        for _, (losses, right, *_) in pieces:
            sums += torch.stack([losses.double().sum(), right.double().sum(), torch.ones_like(right).double().sum()])
        for name, value in zip(network.names, trained, strict=True):  # type: ignore[arg-type]
            getattr(network, name).copy_(value)
        loss, right, count = runtime.all_reduce_sum(sums).tolist()
        return {"perplexity": float(np.exp(loss / count)), "next_token_accuracy": right / count}

    def stored(self, network: nn.Module) -> Stored:
        """The trained network as others start from it."""
        names = set(network.names)  # type: ignore[arg-type]
        weights = {name: value.cpu() for name, value in network.state_dict().items() if name not in names}
        return Stored(self.tokenizer, self.sizes, self.frequent, tuple(self.order), weights)


def _by_frequency(texts: Sequence[Tokens], vocabulary: int) -> tuple[int, ...]:
    order: list[int] = np.argsort(-counts(texts, vocabulary), kind="stable").tolist()
    return tuple(order)
