"""Training of a language model, and saving it for other runs to start from."""

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
from training.core.files import write_file
from training.engine import checkpoint
from training.engine.inference import iterate_outputs
from training.engine.learner import Stage, Trainable
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime
from training.learners.sentiment.awd_lstm import Dropouts, Encoder, LanguageModel, Sizes
from training.learners.sentiment.dataset import Stream, Tokens, count_tokens

_WEIGHTS, _TOKENIZER, _DESCRIPTION = "language_model.pt", "tokenizer.json", "language_model.json"
_OUTPUT_PENALTY, _CHANGE_PENALTY = 2.0, 1.0
"""Weights of the penalties on large outputs and on their change between tokens (Merity et al. 2017, α and β)."""


@dataclass(frozen=True)
class StoredLanguageModel:
    """A stored language model, from which other runs start.

    Attributes:
        tokenizer: the tokenizer, as JSON.
        sizes: the sizes of the encoder.
        frequent: how many tokens the first level of the softmax has.
        order: all tokens, the most frequent first.
        weights: the weights of the network, by name.
    """

    tokenizer: str
    sizes: Sizes
    frequent: int
    order: tuple[int, ...]
    weights: dict[str, Tensor]

    @property
    def encoder_weights(self) -> dict[str, Tensor]:
        """The weights of the encoder, by their names in it."""
        prefix = "encoder."
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}


def save_language_model(folder: Path, stored: StoredLanguageModel, description: dict[str, Any]) -> None:
    """Write a language model into the folder, with a description of its data and scores."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / _TOKENIZER, stored.tokenizer)
    state = {"weights": stored.weights, "order": list(stored.order), "frequent": stored.frequent}
    checkpoint.save(folder / _WEIGHTS, state)
    text = json.dumps({"sizes": asdict(stored.sizes), **description}, indent=1)
    write_file(folder / _DESCRIPTION, text + "\n")


def load_language_model(folder: Path) -> StoredLanguageModel:
    """Read the language model in a folder. Raises CannotTrain if there is none."""
    try:
        tokenizer = (folder / _TOKENIZER).read_text("utf-8")
        sizes = Sizes(**json.loads((folder / _DESCRIPTION).read_bytes())["sizes"])
        load_tokenizer(tokenizer)
    except Exception as error:  # tokenizers raises a bare Exception if the file is not one of its own.
        raise CannotTrain(f"{folder} does not contain a language model: {error}.") from None
    state = checkpoint.load(folder / _WEIGHTS)
    return StoredLanguageModel(tokenizer, sizes, state["frequent"], tuple(state["order"]), state["weights"])


class LanguageModelTraining(Trainable):
    """Trains a language model on texts, from scratch or from a stored one."""

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
        start: StoredLanguageModel | None = None,
    ) -> None:
        self.sizes, self.dropouts, self.settings = sizes, dropouts, settings
        self.tokenizer, self.start = tokenizer, start
        rows = settings.batch_size
        self.samples = Stream(texts, rows=rows, window=window, seed=settings.seed)
        self.held_out = Stream(held_out, rows=min(32, rows), window=window, seed=0)
        self.frequent = start.frequent if start else min(frequent, sizes.vocabulary)
        self.order = start.order if start else _by_frequency(texts, sizes.vocabulary)

    def network(self) -> nn.Module:
        """Return the language model, new or with the stored weights."""
        encoder = Encoder(self.sizes, self.dropouts)
        network = LanguageModel(encoder, self.order, self.frequent, self.settings.batch_size)
        if self.start:
            network.load_state_dict(self.start.weights, strict=False)
        return network

    def stages(self) -> tuple[Stage, ...]:
        """Return the only stage."""
        return (Stage("language model", self.settings.epochs, self.settings.rate),)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """Return all parameters as one group."""
        return [ParamGroup(tuple(network.parameters()))]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, plus the penalties on the last layer's outputs."""
        losses, _, raw, dropped = network(batch["tokens"], batch["begins"])
        penalty = _OUTPUT_PENALTY * dropped.float().pow(2).mean()
        if raw.shape[1] > 1:
            penalty = penalty + _CHANGE_PENALTY * (raw[:, 1:] - raw[:, :-1]).float().pow(2).mean()
        total: Tensor = losses.mean() + penalty
        return total

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return the perplexity per token, and the accuracy of the most likely token. Keeps the network's state."""
        names: list[str] = network.state_names  # type: ignore[assignment]
        training_state = [getattr(network, name).clone() for name in names]
        sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
        batches = iterate_outputs(network, ("tokens", "begins"), self.held_out, runtime, batch_size=self.held_out.rows)
        for _, (losses, is_right, *_) in batches:
            count = torch.ones_like(is_right).double().sum()
            sums += torch.stack([losses.double().sum(), is_right.double().sum(), count])
        for name, value in zip(names, training_state, strict=True):
            getattr(network, name).copy_(value)
        loss, right, tokens = runtime.all_reduce_sum(sums).tolist()
        return {"perplexity": float(np.exp(loss / tokens)), "next_token_accuracy": right / tokens}

    def to_stored(self, network: nn.Module) -> StoredLanguageModel:
        """Return the trained network for others to start from."""
        state_names = set(network.state_names)  # type: ignore[arg-type]
        weights = {name: value.cpu() for name, value in network.state_dict().items() if name not in state_names}
        return StoredLanguageModel(self.tokenizer, self.sizes, self.frequent, tuple(self.order), weights)


def _by_frequency(texts: Sequence[Tokens], vocabulary: int) -> tuple[int, ...]:
    order: list[int] = np.argsort(-count_tokens(texts, vocabulary), kind="stable").tolist()
    return tuple(order)
