"""One label for a text: a language model first, then a classifier on its encoder, thawed from the top (ULMFiT)."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._text import encode_all, load_tokenizer, train_tokenizer
from tasks.contract import Arrays, Task
from tasks.manifest import Metric
from tasks.sentiment import Sentiment
from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Table, Trained
from training.core.sources import SourceFetcher
from training.data.splits import validation_split
from training.engine.inference import collect_outputs
from training.engine.learner import Learner, Phase, Stage
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration, classification
from training.evaluation.classification import classification_metrics
from training.learners.sentiment import evaluate as evaluation
from training.learners.sentiment import language_model, nbsvm
from training.learners.sentiment.awd_lstm import Dropouts, Encoder, Explained, Sizes, TextClassifier
from training.learners.sentiment.corpora import corpus, corpus_names
from training.learners.sentiment.dataset import Labelled, Tokens
from training.learners.sentiment.language_model import LanguageModelling, Stored
from training.learners.sentiment.ngram_baseline import Predicted, language_table
from training.learners.sentiment.ngram_network import Hashing, NGrams, Summed
from training.learners.sentiment.reader import TextRules, Texts, read_texts
from training.learners.sentiment.tfidf_baseline import Baseline, tf_idf

_SLOWER = 2.6
"""How much slower each layer learns than the one above it (Howard and Ruder 2018)."""


@dataclass(frozen=True)
class Options:
    """What can be chosen for texts."""

    text_column: str = option("", "column of the texts; empty: guessed from its name")
    label_column: str = option("", "column of the labels; empty: guessed from its name")
    group_column: str = option("", "column of groups that must not be split; empty: equal texts are one group")
    neighbours: int = option(0, "numbered files of so many consecutive numbers are a group; 0: not at all")
    valid_fraction: float = option(0.1, "share of the texts that are kept for validation")
    language_model: str = option("", "folder of a stored language model to start from")
    corpus: str = option("", "texts that the language model reads beside the data's own: wikitext-2")
    vocabulary: int = option(8000, "tokens of a new tokenizer")
    embedding: int = option(160, "width of a new language model's embeddings")
    hidden: int = option(320, "units of its inner layers")
    layers: int = option(2, "how many layers it has")
    frequent: int = option(1000, "tokens in the first level of its softmax")
    lm_epochs: int = option(1, "epochs of a new language model, over all texts there are")
    lm_rate: float = option(8e-3, "peak learning rate of the language model")
    lm_batch_size: int = option(128, "rows that the language model reads side by side")
    window: int = option(80, "tokens that gradients go back over in the language model")
    tuning_epochs: int = option(1, "epochs in which the language model is tuned to the data's own texts")
    tuning_rate: float = option(4e-3, "peak learning rate of that")
    tuning_batch_size: int = option(48, "rows that are read side by side in that: more steps, each of less")
    lm_dropout: float = option(0.25, "factor on the dropouts of AWD-LSTM, in the language model")
    dropout: float = option(0.6, "factor on the dropouts of AWD-LSTM, in the classifier")
    head_dropout: float = option(0.3, "share of the pooled features that are dropped")
    head_epochs: int = option(1, "epochs in which only the head learns")
    last_epochs: int = option(1, "epochs in which the head and the last layer learn")
    longest: int = option(350, "tokens of a text that training reads; the service reads all")
    n_grams: int = option(
        18, "the linear part beside the network has 2^this rows for pairs, as many for triples; 0: none"
    )


class SentimentLearner(Learner):
    """Learns the label of a text."""

    summary: ClassVar[str] = "does this text sound glad? one label a text, by way of a language model"
    data_kind: ClassVar[str] = "a CSV or Parquet file of texts and labels, or a folder with a folder of .txt files each"
    default_settings: ClassVar[Settings] = Settings(epochs=3, batch_size=64, rate=4e-3, label_smoothing=0.05)
    default_options: ClassVar[Options] = Options()
    hub_tag: ClassVar[str] = "text-classification"
    task: Sentiment
    samples: Labelled

    def __init__(self, texts: Texts, general: Sequence[str], settings: Settings, options: Options) -> None:
        self.chosen, self.trained_with, self.read = options, settings, texts
        kept = validation_split(texts.groups, texts.labels, options.valid_fraction)
        self.places = ([i for i, k in enumerate(kept) if not k], [i for i, k in enumerate(kept) if k])
        # Texts of like length share a batch where they are asked for in this order.
        self.places[1].sort(key=lambda i: len(texts.texts[i]))
        self.stored = language_model.read(Path(options.language_model)) if options.language_model else None
        own = [texts.texts[i] for i in self.places[0]] + list(texts.unlabelled)
        tokenizer = self.stored.tokenizer if self.stored else train_tokenizer([*own, *general], size=options.vocabulary)
        self.task = Sentiment(texts.names, tokenizer)
        tool = load_tokenizer(tokenizer)
        self.own = encode_all(tool, own)
        self.general = encode_all(tool, general)
        train, valid = self.places
        self.samples = Labelled(self.own[: len(train)], [texts.labels[i] for i in train], most=options.longest)
        tokens = encode_all(tool, [texts.texts[i] for i in valid])
        self.held_out = Labelled(tokens, [texts.labels[i] for i in valid])
        self.sizes = self.stored.sizes if self.stored else self._sizes(tool.get_vocab_size())
        self.scored: dict[str, dict[str, float]] = {}

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> "SentimentLearner":
        """Reads and splits the texts. Raises CannotTrain."""
        rules = TextRules(options.text_column, options.label_column, options.group_column, options.neighbours)
        texts = read_texts(data, rules)
        general: tuple[str, ...] = ()
        if options.corpus and not options.language_model:
            if options.corpus not in corpus_names():
                raise CannotTrain(f"--corpus {options.corpus}: there are {', '.join(corpus_names())}.")
            general = corpus(options.corpus, fetcher)
        return cls(texts, general, settings, options)

    def _sizes(self, vocabulary: int) -> Sizes:
        return Sizes(vocabulary, self.chosen.embedding, self.chosen.hidden, self.chosen.layers)

    def data_summary(self) -> str:
        """Counts, and what was found on reading."""
        train, valid = self.places
        words = f"{len(self.task.labels)} labels, {len(train):,} texts to train on, {len(valid):,} to validate"
        tokens = sum(map(len, self.own))
        more = f" and {len(self.read.unlabelled):,} without a label" if self.read.unlabelled else ""
        lines = [f"{words}{more}; {tokens:,} tokens of {self.sizes.vocabulary:,} kinds.", *self.read.notices]
        if self.general:
            lines.append(f"Beside them, {sum(map(len, self.general)):,} tokens of {self.chosen.corpus}.")
        return "\n".join(lines)

    def phases(self) -> Iterator[Phase]:
        """The language model of all texts there are, unless one is stored; and the same, tuned to the data's own."""
        options = self.chosen
        if not self.stored and options.lm_epochs:
            texts = [*self.own, *self.general]
            yield self._phase("language-model", texts, options.lm_epochs, options.lm_rate, options.lm_batch_size)
        if options.tuning_epochs:
            epochs, rate = options.tuning_epochs, options.tuning_rate
            yield self._phase("fine-tune", self.own, epochs, rate, options.tuning_batch_size)

    def _phase(self, name: str, texts: Sequence[Tokens], epochs: int, rate: float, rows: int) -> Phase:
        options = self.chosen
        settings = replace(self.trained_with, epochs=epochs, rate=rate, batch_size=rows)
        trainee = LanguageModelling(
            texts,
            self.held_out.texts,
            self.task.tokenizer,
            self.sizes,
            Dropouts().times(options.lm_dropout),
            settings,
            window=options.window,
            frequent=options.frequent,
            start=self.stored,
        )

        def keep(network: nn.Module, folder: Path) -> None:
            self.stored = trainee.stored(network)
            self.scored[name] = trainee.scores(network, Runtime(torch.device("cpu")))
            about = {"tokens": sum(map(len, texts)), "of_validation_texts": self.scored[name]}
            language_model.write(folder, self.stored, about)

        return Phase(name, trainee, settings, keep)

    def network(self) -> nn.Module:
        """The classifier, on the language model's encoder."""
        options = self.chosen
        # The dropouts of the paper's classifier.
        dropouts = Dropouts(words=0.05, inputs=0.4, weights=0.5, hidden=0.3, outputs=0.4).times(options.dropout)
        encoder = Encoder(self.sizes, dropouts)
        if self.stored:
            encoder.load_state_dict(_of_encoder(self.stored))
        return TextClassifier(encoder, len(self.task.labels), options.head_dropout)

    def stages(self) -> tuple[Stage, ...]:
        """The head, then the last layer too, then everything."""
        settings, options = self.trained_with, self.chosen
        return (
            Stage("head", options.head_epochs, settings.rate, frozen=True),
            Stage("last layer", options.last_epochs, settings.rate, frozen=True),
            Stage("all", settings.epochs, settings.rate / 2),
        )

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """From the head downwards, as far as the stage goes; each layer slower than the one above."""
        classifier = cast(TextClassifier, network)
        parts: list[list[nn.Module]] = [[classifier.norm, classifier.head]]
        parts += [[layer] for layer in reversed(classifier.encoder.layers)]
        parts[-1].append(classifier.encoder.embedding)
        learning = parts[: {"head": 1, "last layer": 2}.get(stage.name, len(parts))]
        network.requires_grad_(False)
        groups = []
        for depth, modules in enumerate(learning):
            parameters = tuple(p for module in modules for p in module.parameters())
            for parameter in parameters:
                parameter.requires_grad_(True)
            groups.append(ParamGroup(parameters, _SLOWER**-depth))
        return groups

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, smoothed."""
        (logits,) = network(batch["tokens"])
        return cross_entropy(logits, batch["target"], label_smoothing=self.trained_with.label_smoothing)

    def _logits(self, network: nn.Module, runtime: Runtime) -> Tensor:
        return collect_outputs(network, ["tokens"], self.held_out, runtime, batch_size=32)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Accuracy and cross entropy on the validation texts, read whole."""
        logits = self._logits(network, runtime)
        right = (logits.argmax(dim=1) == self.held_out.targets).float().mean()
        return {"accuracy": float(right), "loss": float(cross_entropy(logits, self.held_out.targets))}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """With n-grams beside it, weighed against each other by the validation texts; says what each token adds."""
        trained = cast(TextClassifier, copy.deepcopy(network).float().cpu().eval())
        n_grams = self._n_grams() if self.chosen.n_grams else None
        shares = calibration.fit_blend_weights(self._parts(trained, n_grams), self.held_out.targets)
        return Explained(trained, n_grams, shares).eval()

    def _n_grams(self) -> NGrams:
        hashing = Hashing(self.sizes.vocabulary, self.chosen.n_grams)
        texts, targets = self.own[: len(self.samples)], self.samples.targets.numpy()
        return nbsvm.fitted(texts, targets, len(self.task.labels), hashing)

    def _parts(self, trained: nn.Module, n_grams: NGrams | None) -> list[Tensor]:
        """The logits of the network, and those of the n-grams, for the validation texts."""
        runtime = Runtime(torch.device("cpu"))
        parts = [self._logits(trained, runtime)]
        return parts if n_grams is None else [*parts, self._logits(Summed(n_grams), runtime)]

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """Accuracy, calibration, the words that decide, mistakes, tf-idf beside; and the language model's figures."""
        task, explained, run = self.task, cast(Explained, served), evaluation.runs(served)
        texts, targets = [self.read.texts[i] for i in self.places[1]], self.held_out.targets.numpy()
        judged = evaluation.Judged(task.labels, texts, targets, evaluation.said_of(task, run, texts))
        parts = self._parts(trained[0].network, cast(NGrams | None, explained.n_grams))
        before = parts[0].softmax(1).double().numpy()
        beside, verdict = evaluation.against_baseline(judged, self._baseline(texts))
        named, naming = evaluation.identity_table(task, run, len(task.labels) - 1)
        words = evaluation.deciding_words(judged)
        bins = {
            "the network as trained": calibration.reliability_bins(before, targets),
            "as served": calibration.reliability_bins(judged.probabilities, targets),
        }
        tables = [beside, evaluation.length_table(judged), evaluation.words_table(words), *self._of_phases()]
        quoted = evaluation.wrong_table(judged, quoted=False)
        return Evaluation(
            metrics=(
                *classification_metrics(judged.probabilities, before, targets, f"{len(targets)} validation texts"),
                *self._accuracies(parts),
            ),
            notes=(verdict, self._of_parts(parts, explained.shares), *self._notes(trained, judged)),
            tables=(*tables, quoted, named),
            figures=evaluation.views(judged, words, bins, ""),
            failures=(*evaluation.failures(judged), naming),
        )

    def _accuracies(self, parts: Sequence[Tensor]) -> tuple[Metric, ...]:
        """Of the network and the n-grams alone, and together where others chose how much each counts for."""
        if len(parts) < 2:
            return ()
        targets, count = self.held_out.targets, f"{len(self.held_out)} validation texts"
        groups = [self.read.groups[i] for i in self.places[1]]
        half = torch.tensor(validation_split(groups, targets.tolist(), 0.5))
        right = torch.zeros(len(targets), dtype=torch.bool)
        for chosen in (half, ~half):
            shares = calibration.fit_blend_weights([part[chosen] for part in parts], targets[chosen])
            both = torch.stack([share * part[~chosen] for share, part in zip(shares, parts, strict=True)]).sum(0)
            right[~chosen] = both.argmax(1) == targets[~chosen]
        alone = [float((part.argmax(1) == targets).double().mean()) for part in parts]
        told = (
            ("accuracy_of_network", alone[0], f"the AWD-LSTM's classifier alone, {count}"),
            ("accuracy_of_n_grams", alone[1], f"the weighted n-grams alone, {count}"),
            (
                "accuracy_crossed",
                float(right.double().mean()),
                f"both, their shares fitted on the other half of {count}",
            ),
        )
        return tuple(Metric(name=name, value=value, protocol=protocol) for name, value, protocol in told)

    def _of_parts(self, parts: Sequence[Tensor], shares: Sequence[float]) -> str:
        """What the answer is made of."""
        if len(parts) < 2:
            return f"The network's logits are multiplied by {shares[0]:.3f} (the inverse of a temperature)."
        network, n_grams, crossed = (metric.value for metric in self._accuracies(parts))
        return (
            f"The answer is a sum of two: the AWD-LSTM's classifier, alone right for {network:.4f} of the validation "
            f"texts, and weighted n-grams (naive Bayes, logistic regression), alone {n_grams:.4f}. How much each "
            f"counts for ({shares[0]:.3f} and {shares[1]:.3f}) was fitted on the validation texts, which calibrates "
            f"the sum too; fitted on one half and measured on the other, it is right for {crossed:.4f}."
        )

    def _baseline(self, valid: Sequence[str]) -> Baseline:
        read, train = self.read, self.places[0]
        texts, labels = [read.texts[i] for i in train], [read.labels[i] for i in train]
        return tf_idf(texts, labels, [read.groups[i] for i in train], valid, len(read.names))

    def _notes(self, trained: Sequence[Trained], judged: evaluation.Judged) -> list[str]:
        longest = self.task.buckets[-1]
        notes = [
            f"Split: {self.chosen.valid_fraction:.0%} of the groups of texts are held out ({self._grouping()}). The "
            "best epoch was chosen by them, so expect a little less on new ones. The language model never read them.",
            classification.accuracy_interval_note(float(judged.right.mean()), len(judged.targets)),
            f"A text of more than {longest:,} tokens is read in parts, none of it is left out: the answer is the "
            "average of theirs, each counting by its length, and says in how many parts it was read.",
            "The words that decided are exact: the network's head is linear in what the layers give at each token "
            "(their mean and their largest values), and n-grams are added up, so a score is a sum over tokens.",
        ]
        if len(trained) > 1:
            accuracies = [each.scores["accuracy"] for each in trained]
            notes.append(
                f"Accuracy over {len(trained)} seeds: {classification.mean_and_std(accuracies)}; "
                "the first is published."
            )
        if self.read.unlabelled:
            notes.append(
                "Texts without a label, which the language model read, are not split: some may be of a held-out film."
            )
        if self.chosen.language_model:
            notes.append("It started from a stored language model.")
        return notes

    def _grouping(self) -> str:
        if self.chosen.group_column:
            return f"column {self.chosen.group_column}"
        near = self.chosen.neighbours
        return (
            f"blocks of {near} neighbouring numbers, for such files are of one film" if near else "equal texts are one"
        )

    def _of_phases(self) -> tuple[Table, ...]:
        """The language model after each phase, beside n-grams, on the validation texts."""
        if not self.scored:
            return ()
        valid = self.held_out.texts
        models = {
            f"AWD-LSTM, {name.replace('-', ' ')}": Predicted(scores["perplexity"], scores["next_token_accuracy"])
            for name, scores in self.scored.items()
        }
        return (language_table(models, self.own, valid, self.sizes.vocabulary),)

    def validation_inputs(self, count: int) -> Arrays:
        """Validation texts of many lengths, cut and padded to one bucket."""
        chosen = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).round().astype(int)
        length = self.task.buckets[min(3, len(self.task.buckets) - 1)]
        rows = np.zeros((len(chosen), length), np.int64)
        for row, index in zip(rows, chosen, strict=True):
            text = self.held_out.texts[index][:length]
            row[: len(text)] = text
        return {"tokens": rows}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Short validation texts of each label that it is sure of, and one of the longest."""
        texts = [self.read.texts[i] for i in self.places[1]]
        short = [i for i, text in enumerate(texts) if 40 <= len(text) <= 1000][:300] or list(range(len(texts)))[:300]
        said = evaluation.said_of(self.task, evaluation.runs(served), [texts[i] for i in short])
        found = []
        for label in reversed(range(len(self.task.labels))):
            sure = [(float(each.probabilities[label]), i) for each, i in zip(said, short, strict=True)]
            found.append(max((one for one in sure if self.held_out.targets[one[1]] == label), default=max(sure)))
        chosen = [texts[i] for _, i in found[:4]]
        task = replace(self.task, example_texts=tuple(chosen))
        return task, [*task.examples(), {"text": texts[-1][:20_000], "words": 0}]


def _of_encoder(stored: Stored) -> dict[str, Tensor]:
    start = "encoder."
    return {name[len(start) :]: value for name, value in stored.weights.items() if name.startswith(start)}
