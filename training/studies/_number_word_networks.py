"""The steps from a fully connected network to a language model, as in the course (fast.ai 2019, lesson 7).

Each network predicts next words: it maps tokens int64 (n, time) to logits (n, predicted, vocabulary), for the last
`predicted` positions. `begins` says that the tokens do not continue those of the previous batch.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.learners.sentiment.awd_lstm import Dropouts, Encoder, Sizes, State

WIDTH = 64


class NextWord(nn.Module):
    """Base class: maps words to a hidden state, and that to logits."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.norm: nn.Module = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)

    @abstractmethod
    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Return logits (n, predicted, vocabulary)."""

    def penalty(self) -> Tensor | float:
        """Return what to add to the cross-entropy of the last step."""
        return 0.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states (n, predicted, width)."""
        normalised = self.norm(hidden.flatten(0, 1)).view_as(hidden)
        logits: Tensor = self.head(normalised)
        return logits


class ThreeWords(NextWord):
    """Predicts the fourth word from three, with the layer of each word written out."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Return the logits for tokens (n, 3)."""
        hidden = torch.relu(self.mix(self.embedding(tokens[:, 0])))
        hidden = torch.relu(self.mix(hidden + self.embedding(tokens[:, 1])))
        hidden = torch.relu(self.mix(hidden + self.embedding(tokens[:, 2])))
        return self.logits(hidden[:, None])


class Loop(NextWord):
    """The same layers in a loop: a recurrent network.

    With `every_word`, it predicts the next word after each word instead of after the last only; with `keeps_state`, its
    hidden state is carried over from batch to batch, without gradients.
    """

    def __init__(self, vocabulary: int, *, every_word: bool = False, keeps_state: bool = False) -> None:
        super().__init__(vocabulary)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.every_word, self.keeps_state = every_word, keeps_state
        self._hidden: Tensor | None = None

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Return the logits for tokens (n, time)."""
        hidden = self._hidden if self.keeps_state and not begins else None
        if hidden is None:
            hidden = torch.zeros(len(tokens), WIDTH, device=tokens.device)
        states = []
        for word in self.embedding(tokens).unbind(1):
            hidden = torch.relu(self.mix(hidden + word))
            states.append(hidden)
        self._hidden = hidden.detach()
        return self.logits(torch.stack(states if self.every_word else states[-1:], dim=1))


class Recurrent(NextWord):
    """torch's recurrent layers, created by `layers`; keeps its state and predicts every next word."""

    def __init__(self, vocabulary: int, layers: Callable[[], nn.RNNBase]) -> None:
        super().__init__(vocabulary)
        self.layers = layers()
        self._hidden: Tensor | None = None

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Return the logits for tokens (n, time)."""
        states, hidden = self.layers(self.embedding(tokens), None if begins else self._hidden)
        self._hidden = hidden.detach()
        return self.logits(states)


class Regularised(NextWord):
    """AWD-LSTM: dropout of words, inputs, recurrent weights and outputs, tied weights, and penalties on the outputs.

    Its inner layer is three times as wide as the embedding, about as in the paper.
    """

    _INNER = 3 * WIDTH
    _ACTIVATION, _CHANGE = 2.0, 1.0

    def __init__(self, vocabulary: int, dropouts: Dropouts) -> None:
        super().__init__(vocabulary)
        self.encoder = Encoder(Sizes(vocabulary, WIDTH, self._INNER, layers=2), dropouts)
        self.embedding = self.encoder.embedding
        # As in nn.Embedding; weights as small as for a large vocabulary would need more steps than this study takes.
        nn.init.normal_(self.embedding.weight)
        self.norm = nn.Identity()
        self.head.weight = self.embedding.weight
        self._state: State | None = None
        self._penalty: Tensor | float = 0.0

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Return the logits for tokens (n, time)."""
        raw, dropped, state = self.encoder(tokens, None if begins else self._state)
        self._state = tuple((hidden.detach(), cell.detach()) for hidden, cell in state)
        activation = dropped[-1].pow(2).mean()
        self._penalty = self._ACTIVATION * activation + self._CHANGE * raw[-1].diff(dim=1).pow(2).mean()
        return self.logits(dropped[-1])

    def penalty(self) -> Tensor | float:
        """Penalise large activations, and large changes of them (Merity et al. 2017)."""
        return self._penalty
