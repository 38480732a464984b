"""The steps from a fully connected network to a language model, as the course takes them (fast.ai 2019, lesson 7).

Each says which word comes next: of tokens int64 (n, time) the logits (n, predicted, vocabulary), where the last
`predicted` places are told. `begins` says that the words do not go on where the last ones ended.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.learners.sentiment.awd_lstm import Dropouts, Encoder, Sizes, State

WIDTH = 64


class NextWord(nn.Module):
    """What all of them are: words in, a hidden state, logits out."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.norm: nn.Module = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)

    @abstractmethod
    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Logits (n, predicted, vocabulary)."""

    def penalty(self) -> Tensor | float:
        """What the loss of the last step has beside its cross-entropy."""
        return 0.0

    def told(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (n, predicted, width)."""
        normed = self.norm(hidden.flatten(0, 1)).view_as(hidden)
        found: Tensor = self.head(normed)
        return found


class ThreeWords(NextWord):
    """Three words, one layer each, all written out; the fourth is told."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Of tokens (n, 3)."""
        hidden = torch.relu(self.mix(self.embedding(tokens[:, 0])))
        hidden = torch.relu(self.mix(hidden + self.embedding(tokens[:, 1])))
        hidden = torch.relu(self.mix(hidden + self.embedding(tokens[:, 2])))
        return self.told(hidden[:, None])


class Loop(NextWord):
    """The same layers in a loop: a recurrent network.

    With `every`, it tells the next word after each word, not after the last one only; with `keeps`, its hidden state
    goes on from batch to batch, without gradients.
    """

    def __init__(self, vocabulary: int, *, every: bool = False, keeps: bool = False) -> None:
        super().__init__(vocabulary)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.every, self.keeps = every, keeps
        self._hidden: Tensor | None = None

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Of tokens (n, time)."""
        hidden = self._hidden if self.keeps and not begins else None
        if hidden is None:
            hidden = torch.zeros(len(tokens), WIDTH, device=tokens.device)
        found = []
        for word in self.embedding(tokens).unbind(1):
            hidden = torch.relu(self.mix(hidden + word))
            found.append(hidden)
        self._hidden = hidden.detach()
        return self.told(torch.stack(found if self.every else found[-1:], dim=1))


class Recurrent(NextWord):
    """torch's recurrent layers, as `layers` makes them, which keep their state and tell every next word."""

    def __init__(self, vocabulary: int, layers: Callable[[], nn.RNNBase]) -> None:
        super().__init__(vocabulary)
        self.layers = layers()
        self._hidden: Tensor | None = None

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Of tokens (n, time)."""
        found, hidden = self.layers(self.embedding(tokens), None if begins else self._hidden)
        self._hidden = hidden.detach()
        return self.told(found)


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
        # As nn.Embedding begins, not as small as for a large vocabulary: so few steps could not make up for it.
        nn.init.normal_(self.embedding.weight)
        self.norm = nn.Identity()
        self.head.weight = self.embedding.weight
        self._state: State | None = None
        self._penalty: Tensor | float = 0.0

    def forward(self, tokens: Tensor, begins: bool) -> Tensor:
        """Of tokens (n, time)."""
        raw, dropped, state = self.encoder(tokens, None if begins else self._state)
        self._state = tuple((hidden.detach(), cell.detach()) for hidden, cell in state)
        activation = dropped[-1].pow(2).mean()
        self._penalty = self._ACTIVATION * activation + self._CHANGE * raw[-1].diff(dim=1).pow(2).mean()
        return self.told(dropped[-1])

    def penalty(self) -> Tensor | float:
        """Large activations, and large changes of them (Merity et al. 2017)."""
        return self._penalty
