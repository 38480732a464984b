"""Learns the label of a text: a language model first, then a classifier on its encoder.

The classifier is unfrozen from the top (ULMFiT: Howard and Ruder 2018).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._text import encode_all, load_tokenizer, train_tokenizer
from tasks.contract import Arrays, Run, Task
from tasks.manifest import Metric
from tasks.sentiment import Sentiment
from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Remeasured, SampleScores, Table, Trained
from training.core.sources import SourceFetcher
from training.data.delimited import CsvFormat, CsvOptions
from training.data.hash_split import validation_split
from training.engine.inference import collect_outputs
from training.engine.learner import Learner, Phase, Stage
from training.engine.optim import ParamGroup
from training.engine.runtime import Batch, Runtime
from training.evaluation import calibration, classification
from training.learners.sentiment.awd_lstm import Dropouts, Encoder, ServedSentiment, Sizes, TextClassifier
from training.learners.sentiment.blend import Blend, blend_logits, cross_fit_blend, fit_blend
from training.learners.sentiment.corpora import corpus_names, load_corpus
from training.learners.sentiment.dataset import LabelledTexts, Tokens
from training.learners.sentiment.evaluate import (
    PredictedTexts,
    accuracy_scores,
    compare_with_baselines,
    describe_failures,
    draw_figures,
    find_deciding_words,
    measure_identity_terms,
    module_runner,
    predict_texts,
    tabulate_baseline,
    tabulate_lengths,
    tabulate_mistakes,
    tabulate_words,
)
from training.learners.sentiment.language_model import (
    LanguageModelTraining,
    StoredLanguageModel,
    load_language_model,
    save_language_model,
)
from training.learners.sentiment.nbsvm import fit_nbsvm
from training.learners.sentiment.ngram_baseline import LanguageModelScores, language_model_table
from training.learners.sentiment.ngram_network import NGramClassifier, NGramHashing, NGrams
from training.learners.sentiment.reader import TextData, TextRules, read_texts
from training.learners.sentiment.short_texts import (
    ShortTexts,
    measure_short_texts,
    measure_word_pieces,
    tabulate_short_texts,
    temperatures,
)
from training.learners.sentiment.tfidf_baseline import Baseline, fit_tfidf

_CPU = Runtime(torch.device("cpu"))
_BATCH = 32
_RATE_DECAY = 2.6
"""Each layer's learning rate is that of the layer above divided by this (Howard and Ruder 2018)."""
_CLASSIFIER_DROPOUTS = Dropouts(words=0.05, inputs=0.4, weights=0.5, hidden=0.3, outputs=0.4)
"""The dropout rates of the classifier in Howard and Ruder 2018."""


@dataclass(frozen=True)
class Options(CsvOptions):
    """Options of the sentiment learner."""

    text_column: str = option("", "column of the texts; empty = guessed from its name")
    label_column: str = option("", "column of the labels; empty = guessed from its name")
    group_column: str = option("", "column of groups that must not be split; empty = only equal texts form a group")
    files_per_group: int = option(0, "for numbered files: consecutive numbers per group; 0 = no groups", at_least=0)
    valid_fraction: float = option(0.1, "fraction of the texts held out for validation", above=0, below=1)
    language_model: str = option("", "folder of a stored language model to start from")
    corpus: str = option("", "additional general texts for the language model: wikitext-2")
    vocabulary: int = option(8000, "size of a new tokenizer's vocabulary", at_least=1)
    embedding: int = option(160, "size of a new language model's embeddings", at_least=1)
    hidden: int = option(320, "units of a new language model's inner layers", at_least=1)
    layers: int = option(2, "number of a new language model's layers", at_least=1)
    frequent: int = option(
        1000, "most frequent tokens, which form the first level of the two-level softmax", at_least=1
    )
    lm_epochs: int = option(1, "epochs of a new language model, on all texts", at_least=0)
    lm_rate: float = option(8e-3, "peak learning rate of a new language model", above=0)
    lm_batch_size: int = option(128, "batch size of a new language model, in rows of text", at_least=1)
    window: int = option(80, "tokens of backpropagation through time in the language model", at_least=1)
    tuning_epochs: int = option(1, "epochs of fine-tuning the language model on the texts of the data", at_least=0)
    tuning_rate: float = option(4e-3, "peak learning rate of fine-tuning", above=0)
    tuning_batch_size: int = option(
        48, "batch size of fine-tuning, in rows of text; fewer rows mean more steps", at_least=1
    )
    lm_dropout: float = option(0.25, "factor on the dropout rates of AWD-LSTM in the language model", at_least=0)
    dropout: float = option(0.6, "factor on the dropout rates of AWD-LSTM in the classifier", at_least=0)
    head_dropout: float = option(0.3, "dropout of the pooled features", at_least=0, below=1)
    head_epochs: int = option(1, "epochs in which only the head is trained", at_least=0)
    last_layer_epochs: int = option(1, "epochs in which the head and the last layer are trained", at_least=0)
    max_tokens: int = option(350, "maximum tokens of a text in training; the service reads whole texts", at_least=1)
    ngram_bits: int = option(
        18,
        "n-grams blended with the network: 2^BITS weights each for pairs and triples; 0 = none",
        at_least=0,
        at_most=30,
    )


class SentimentLearner(Learner):
    """Trains a network that predicts the label of a text."""

    summary: ClassVar[str] = "classify texts, with a language model that is trained first"
    data_kind: ClassVar[str] = "a CSV or Parquet file of texts and labels, or one folder of .txt files per label"
    default_settings: ClassVar[Settings] = Settings(epochs=3, batch_size=64, rate=4e-3, label_smoothing=0.05)
    default_options: ClassVar[Options] = Options()
    hub_tag: ClassVar[str] = "text-classification"
    task: Sentiment
    samples: LabelledTexts

    def __init__(self, data: TextData, corpus: Sequence[str], settings: Settings, options: Options) -> None:
        """`corpus` holds general texts for the language model."""
        self.options, self.settings, self.data = options, settings, data
        is_valid = validation_split(data.groups, data.labels, options.valid_fraction)
        self.train_indices = [i for i, held_out in enumerate(is_valid) if not held_out]
        self.valid_indices = [i for i, held_out in enumerate(is_valid) if held_out]
        # In this order texts of similar length share a batch.
        self.valid_indices.sort(key=lambda i: len(data.texts[i]))
        self.stored = load_language_model(Path(options.language_model)) if options.language_model else None
        texts = [data.texts[i] for i in self.train_indices] + list(data.unlabelled)
        if self.stored:
            tokenizer = self.stored.tokenizer
        else:
            tokenizer = train_tokenizer([*texts, *corpus], size=options.vocabulary)
        self.task = Sentiment(data.names, tokenizer)
        loaded = load_tokenizer(tokenizer)
        self.train_tokens = encode_all(loaded, texts)
        """Tokens of the labelled training texts first, then those of the texts without a label."""
        self.corpus_tokens = encode_all(loaded, corpus)
        self.samples = LabelledTexts(
            self.train_tokens[: len(self.train_indices)],
            [data.labels[i] for i in self.train_indices],
            max_tokens=options.max_tokens,
        )
        valid_tokens = encode_all(loaded, [data.texts[i] for i in self.valid_indices])
        self.held_out = LabelledTexts(valid_tokens, [data.labels[i] for i in self.valid_indices])
        self.sizes = self.stored.sizes if self.stored else self._new_sizes(loaded.get_vocab_size())
        self.phase_scores: dict[str, dict[str, float]] = {}
        self.short_texts: list[ShortTexts] = []

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Any, fetcher: SourceFetcher) -> "SentimentLearner":
        """Read and split the texts. Raises CannotTrain."""
        csv = CsvFormat(options.separator, options.encoding)
        rules = TextRules(options.text_column, options.label_column, options.group_column, options.files_per_group, csv)
        texts = read_texts(data, rules)
        corpus: tuple[str, ...] = ()
        if options.corpus and not options.language_model:
            if options.corpus not in corpus_names():
                raise CannotTrain(
                    f"--corpus {options.corpus}: unknown corpus; choose from {', '.join(corpus_names())}."
                )
            corpus = load_corpus(options.corpus, fetcher)
        return cls(texts, corpus, settings, options)

    def _new_sizes(self, vocabulary: int) -> Sizes:
        return Sizes(vocabulary, self.options.embedding, self.options.hidden, self.options.layers)

    @property
    def _valid_texts(self) -> list[str]:
        return [self.data.texts[i] for i in self.valid_indices]

    def data_summary(self) -> str:
        """Describe the texts, labels and tokens, with warnings from reading the data."""
        train, valid = len(self.train_indices), len(self.valid_indices)
        counts = f"{len(self.task.labels)} labels, {train:,} texts to train on, {valid:,} to validate"
        if self.data.unlabelled:
            counts += f", {len(self.data.unlabelled):,} without a label"
        tokens = sum(map(len, self.train_tokens))
        lines = [f"{counts}; {tokens:,} tokens, vocabulary {self.sizes.vocabulary:,}.", *self.data.warnings]
        if self.corpus_tokens:
            lines.append(
                f"Also for the language model: {sum(map(len, self.corpus_tokens)):,} tokens of {self.options.corpus}."
            )
        return "\n".join(lines)

    def phases(self) -> Iterator[Phase]:
        """Train a language model on all texts, unless one is stored; then fine-tune it on the texts of the data."""
        options = self.options
        if not self.stored and options.lm_epochs:
            texts = [*self.train_tokens, *self.corpus_tokens]
            yield self._phase("language-model", texts, options.lm_epochs, options.lm_rate, options.lm_batch_size)
        if options.tuning_epochs:
            epochs, rate, rows = options.tuning_epochs, options.tuning_rate, options.tuning_batch_size
            yield self._phase("fine-tune", self.train_tokens, epochs, rate, rows)

    def _phase(self, name: str, texts: Sequence[Tokens], epochs: int, rate: float, rows: int) -> Phase:
        options = self.options
        settings = replace(self.settings, epochs=epochs, rate=rate, batch_size=rows)
        trainable = LanguageModelTraining(
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

        def keep(network: nn.Module) -> None:
            self.stored = trainable.to_stored(network)
            self.phase_scores[name] = trainable.scores(network, _CPU)

        def save(folder: Path) -> None:
            description = {"tokens": sum(map(len, texts)), "of_validation_texts": self.phase_scores[name]}
            save_language_model(folder, cast(StoredLanguageModel, self.stored), description)

        return Phase(name, trainable, settings, keep, save)

    def network(self) -> nn.Module:
        """Return the classifier with the language model's encoder."""
        encoder = Encoder(self.sizes, _CLASSIFIER_DROPOUTS.times(self.options.dropout))
        if self.stored:
            encoder.load_state_dict(self.stored.encoder_weights)
        return TextClassifier(encoder, len(self.task.labels), self.options.head_dropout)

    def stages(self) -> tuple[Stage, ...]:
        """Train the head, then the last layer too, then everything."""
        settings, options = self.settings, self.options
        return (
            Stage("head", options.head_epochs, settings.rate, frozen=True),
            Stage("last layer", options.last_layer_epochs, settings.rate, frozen=True),
            Stage("all", settings.epochs, settings.rate / 2),
        )

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """Return a group per layer that the stage trains, from the head downwards, each slower than the one above."""
        classifier = cast(TextClassifier, network)
        layers: list[list[nn.Module]] = [[classifier.norm, classifier.head]]
        layers += [[layer] for layer in reversed(classifier.encoder.layers)]
        layers[-1].append(classifier.encoder.embedding)
        trained = layers[: {"head": 1, "last layer": 2}.get(stage.name, len(layers))]
        network.requires_grad_(False)
        groups = []
        for depth, modules in enumerate(trained):
            parameters = tuple(p for module in modules for p in module.parameters())
            for parameter in parameters:
                parameter.requires_grad_(True)
            groups.append(ParamGroup(parameters, _RATE_DECAY**-depth))
        return groups

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy with label smoothing."""
        (logits,) = network(batch["tokens"])
        return cross_entropy(logits, batch["target"], label_smoothing=self.settings.label_smoothing)

    def _valid_logits(self, network: nn.Module, runtime: Runtime) -> Tensor:
        return collect_outputs(network, ["tokens"], self.held_out, runtime, batch_size=_BATCH)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return accuracy and cross-entropy on the validation texts, which are not truncated."""
        logits = self._valid_logits(network, runtime)
        is_right = (logits.argmax(dim=1) == self.held_out.targets).float()
        return {"accuracy": float(is_right.mean()), "loss": float(cross_entropy(logits, self.held_out.targets))}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export: the network and n-grams, blended by weights fitted on the validation texts.

        The task is calibrated too, for short texts.
        """
        classifier = cast(TextClassifier, copy.deepcopy(network).float().cpu().eval())
        n_grams = self._fit_n_grams() if self.options.ngram_bits else None
        blend = fit_blend(self._logits_of_parts(classifier, n_grams), self.held_out.targets)
        served = ServedSentiment(classifier, n_grams, blend.weights).eval()
        self._measure_short_texts(served)
        return served

    def _measure_short_texts(self, served: nn.Module) -> None:
        """Store in the task what is measured with the module to export: temperatures of short texts, word pieces."""
        texts, targets = self._valid_texts, self.held_out.targets.numpy()
        untempered = replace(self.task, short_text_temperatures=())
        self.short_texts = measure_short_texts(untempered, module_runner(served), texts, targets, self._valid_half())
        self.task = replace(
            self.task,
            short_text_temperatures=temperatures(self.short_texts),
            word_pieces=measure_word_pieces(self.task, texts),
        )

    def remeasure(self, task: Task, run: Run, goldens: Sequence[dict[str, Any]]) -> Remeasured:
        """Fit the temperatures of short texts and count word pieces, and measure whole texts with them."""
        published, texts, targets = cast(Sentiment, task), self._valid_texts, self.held_out.targets.numpy()
        untempered = replace(published, short_text_temperatures=())
        measured = measure_short_texts(untempered, run, texts, targets, self._valid_half())
        pieces = measure_word_pieces(published, texts)
        new = replace(published, short_text_temperatures=temperatures(measured), word_pieces=pieces)
        predicted = PredictedTexts(new.labels, texts, targets, predict_texts(new, run, texts))
        metrics = classification.classification_scores(predicted.probabilities, targets)
        notes = (
            f"Words of one, two and more tokens in the {len(texts):,} validation texts: "
            f"{pieces[0]:.1%}, {pieces[1]:.1%} and {pieces[2]:.1%}.",
        )
        return Remeasured(new, metrics, notes, (tabulate_short_texts(measured), tabulate_lengths(predicted)))

    def _fit_n_grams(self) -> NGrams:
        hashing = NGramHashing(self.sizes.vocabulary, self.options.ngram_bits)
        texts, targets = self.train_tokens[: len(self.samples)], self.samples.targets.numpy()
        return fit_nbsvm(texts, targets, len(self.task.labels), hashing)

    def _logits_of_parts(self, network: nn.Module, n_grams: NGrams | None) -> list[Tensor]:
        """Return the logits of the network and, if there are any, those of the n-grams, for the validation texts."""
        parts = [self._valid_logits(network, _CPU)]
        return parts if n_grams is None else [*parts, self._valid_logits(NGramClassifier(n_grams), _CPU)]

    def _predict(self, exported: nn.Module) -> PredictedTexts:
        texts = self._valid_texts
        predictions = predict_texts(self.task, module_runner(exported), texts)
        return PredictedTexts(self.task.labels, texts, self.held_out.targets.numpy(), predictions)

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return whether the label of each validation text is right."""
        return accuracy_scores(self._predict(exported), self._valid_groups)

    def is_comparable(self, previous: Task) -> bool:
        """Whether that task has the same labels, and numbers the same tokens in the same way."""
        if not super().is_comparable(previous):
            return False
        task, other = self.task, cast(Sentiment, previous)
        return (other.labels, other.tokenizer, other.buckets) == (task.labels, task.tokenizer, task.buckets)

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Evaluate accuracy, calibration, deciding words and mistakes, against tf-idf; and the language model."""
        task, module = self.task, cast(ServedSentiment, served)
        predicted, targets = self._predict(exported), self.held_out.targets
        parts = self._logits_of_parts(trained[0].network, cast(NGrams | None, module.n_grams))
        blend, crossed = fit_blend(parts, targets), cross_fit_blend(parts, targets, self._valid_half())
        baseline = self._fit_baseline(predicted.texts)
        identity_terms, identity_failure = measure_identity_terms(task, module_runner(exported), len(task.labels) - 1)
        words = find_deciding_words(predicted)
        uncalibrated = blend_logits(parts, (1 / len(parts),) * len(parts)).softmax(1).double().numpy()
        scores = accuracy_scores(predicted, self._valid_groups)
        most_frequent = int(self.samples.targets.bincount().argmax())
        caveat = calibration.uncalibrated_caveat(blend.reason)
        return Evaluation(
            metrics=(
                *self._classification_metrics(predicted, uncalibrated, blend, crossed),
                *self._part_metrics(parts, blend, crossed),
            ),
            notes=(_describe_blend(blend), *self._notes(trained, predicted)),
            tables=(
                tabulate_baseline(predicted, baseline),
                tabulate_lengths(predicted),
                *([tabulate_short_texts(self.short_texts)] if self.short_texts else []),
                tabulate_words(words),
                *self._language_model_tables(),
                tabulate_mistakes(predicted, quoted=False),
                identity_terms,
            ),
            figures=draw_figures(predicted, words, _reliability_curves(predicted, uncalibrated, blend)),
            failures=(*describe_failures(predicted), *filter(None, [identity_failure])),
            caveats=(caveat,) if caveat else (),
            comparisons=compare_with_baselines(predicted, scores, baseline, most_frequent),
        )

    def _classification_metrics(
        self, predicted: PredictedTexts, uncalibrated: NDArray[np.floating], blend: Blend, crossed: Tensor | None
    ) -> list[Metric]:
        """Return the metrics; the calibration error is that of blend weights that were fitted on other texts."""
        targets, samples = predicted.targets, f"{len(predicted.targets):,} validation texts"
        metrics = classification.classification_metrics(
            predicted.probabilities,
            uncalibrated,
            targets,
            samples,
            is_calibrated=not blend.reason,
            groups=self._valid_groups,
        )
        bins = f"expected calibration error, {calibration.BINS} bins of equal width, on {samples}"
        replaced = {}
        if not blend.reason and crossed is not None:
            error = calibration.expected_calibration_error(crossed.softmax(1).numpy(), targets)
            protocol = f"{bins}; each half with the weights of the logits fitted on the other"
            replaced["calibration_error"] = Metric(name="calibration_error", value=error, protocol=protocol)
            before = calibration.expected_calibration_error(uncalibrated, targets)
            protocol = f"{bins}, with the mean of the logits of the parts: before weights were fitted"
            replaced["calibration_error_before"] = Metric(
                name="calibration_error_before", value=before, protocol=protocol
            )
        return [replaced.get(metric.name, metric) for metric in metrics]

    def _part_metrics(self, parts: Sequence[Tensor], blend: Blend, crossed: Tensor | None) -> tuple[Metric, ...]:
        """Return the accuracies of the network and the n-grams alone, and of both with cross-fitted blend weights."""
        if len(parts) < 2:
            return ()
        samples = f"{len(self.held_out):,} validation texts"
        network, n_grams = (self._accuracy(part) for part in parts)
        metrics = [
            Metric(name="accuracy_of_network", value=network, protocol=f"the AWD-LSTM classifier alone, {samples}"),
            Metric(name="accuracy_of_n_grams", value=n_grams, protocol=f"the weighted n-grams alone, {samples}"),
        ]
        if crossed is not None and not blend.reason:
            protocol = f"both, with blend weights fitted on the other half of {samples}"
            metrics.append(Metric(name="accuracy_crossed", value=self._accuracy(crossed), protocol=protocol))
        return tuple(metrics)

    def _accuracy(self, logits: Tensor) -> float:
        return float((logits.argmax(1) == self.held_out.targets).double().mean())

    @property
    def _valid_groups(self) -> NDArray[np.integer]:
        """The number of each validation text's group."""
        return np.unique([self.data.groups[i] for i in self.valid_indices], return_inverse=True)[1]

    def _valid_half(self) -> NDArray[np.bool_]:
        """Return which validation texts form one half of them; texts of one group are in the same half."""
        groups = [self.data.groups[i] for i in self.valid_indices]
        return np.array(validation_split(groups, self.held_out.targets.tolist(), 0.5))

    def _fit_baseline(self, valid: Sequence[str]) -> Baseline:
        data, train = self.data, self.train_indices
        texts, labels = [data.texts[i] for i in train], [data.labels[i] for i in train]
        return fit_tfidf(texts, labels, [data.groups[i] for i in train], valid, len(data.names))

    def _notes(self, trained: Sequence[Trained], predicted: PredictedTexts) -> list[str]:
        max_part = self.task.buckets[-1]
        options, groups = self.options, len(set(self._valid_groups.tolist()))
        epochs = options.head_epochs + options.last_layer_epochs + self.settings.epochs
        chosen = (
            " The best epoch was chosen on them, so expect slightly lower scores on new texts." if epochs > 1 else ""
        )
        notes = [
            f"Split: {len(self.valid_indices):,} of {len(self.data.texts):,} texts are held out, by a hash of their "
            f"group ({self._describe_groups()}; held out: {groups:,}). The language model was not trained on "
            f"them.{chosen}",
            classification.accuracy_interval_note(float(predicted.is_right.mean()), len(predicted.targets)),
            f"A text of more than {max_part:,} tokens is read in parts, and nothing is left out: the answer is the "
            "average over the parts, weighted by length, and states their number.",
            "The deciding words are exact: the network's head is linear in the mean and maximum of the layers' outputs "
            "over tokens, and the weights of n-grams are added, so a logit is a sum over tokens.",
        ]
        if len(trained) > 1:
            accuracies = [run.scores["accuracy"] for run in trained]
            notes.append(
                f"Accuracy over {len(trained)} seeds: {classification.mean_and_std(accuracies)}; "
                "the first is published."
            )
        if self.data.unlabelled:
            notes.append(
                "Texts without a label, which the language model was trained on, are not split: some may belong to a "
                "held-out group."
            )
        if self.options.language_model:
            notes.append("Training started from a stored language model.")
        return notes

    def _describe_groups(self) -> str:
        if self.options.group_column:
            return f"by column {self.options.group_column}"
        if count := self.options.files_per_group:
            return f"blocks of {count} consecutively numbered files, which are often about one film"
        return "equal texts form one group"

    def _language_model_tables(self) -> tuple[Table, ...]:
        """Tabulate the language model after each phase, beside n-grams, on the validation texts."""
        if not self.phase_scores:
            return ()
        models = {
            f"AWD-LSTM, {name.replace('-', ' ')}": LanguageModelScores(
                scores["perplexity"], scores["next_token_accuracy"]
            )
            for name, scores in self.phase_scores.items()
        }
        return (language_model_table(models, self.train_tokens, self.held_out.texts, self.sizes.vocabulary),)

    def validation_inputs(self, count: int) -> Arrays:
        """Return up to `count` validation texts of all lengths, cut and padded to one length bucket."""
        indices = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).round().astype(int)
        length = self.task.buckets[min(3, len(self.task.buckets) - 1)]
        tokens = np.zeros((len(indices), length), np.int64)
        for row, index in zip(tokens, indices, strict=True):
            text = self.held_out.texts[index][:length]
            row[: len(text)] = text
        return {"tokens": tokens}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return requests with the clearest short validation text of each label, and one of the longest texts."""
        texts = self._valid_texts
        short = [i for i, text in enumerate(texts) if 40 <= len(text) <= 1000][:300] or list(range(len(texts)))[:300]
        predictions = predict_texts(self.task, module_runner(served), [texts[i] for i in short])
        clearest = []
        for label in reversed(range(len(self.task.labels))):
            ranked = [
                (float(prediction.probabilities[label]), i) for prediction, i in zip(predictions, short, strict=True)
            ]
            of_label = [candidate for candidate in ranked if self.held_out.targets[candidate[1]] == label]
            clearest.append(max(of_label, default=max(ranked)))
        task = replace(self.task, example_texts=tuple(texts[i] for _, i in clearest[:4]))
        return task, [*task.examples(), {"text": texts[-1][:20_000], "words": 0}]


def _describe_blend(blend: Blend) -> str:
    """Describe how the logits are made of the network and the n-grams."""
    if len(blend.weights) == 1:
        return (
            calibration.uncalibrated_caveat(blend.reason)
            or f"The network's logits are multiplied by {blend.weights[0]:.3f} (the inverse of a temperature), which "
            "was fitted on the validation texts."
        )
    parts = "those of the AWD-LSTM classifier and of n-grams, which are weighted by naive Bayes and logistic regression"
    if blend.reason:
        return f"The logits are the mean of {parts}. {calibration.uncalibrated_caveat(blend.reason)}"
    return (
        f"The logits are a weighted sum of {parts}. The weights, {blend.weights[0]:.3f} and {blend.weights[1]:.3f}, "
        "were fitted on the validation texts, which calibrates the sum too."
    )


def _reliability_curves(
    predicted: PredictedTexts, uncalibrated: NDArray[np.floating], blend: Blend
) -> dict[str, list[tuple[float, float, int]]]:
    exported = calibration.reliability_bins(predicted.probabilities, predicted.targets)
    if blend.reason:
        return {"as exported, not calibrated": exported}
    return {
        "before calibration": calibration.reliability_bins(uncalibrated, predicted.targets),
        "as exported": exported,
    }
