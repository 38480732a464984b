"""Reviews of films from the Internet Movie Database: did the writer like it?"""

from dataclasses import replace

from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.sentiment.learner import Options, SentimentLearner

_OPTIONS = Options(neighbours=100, corpus="wikitext-2")

RECIPE = Recipe(
    name="imdb",
    task="sentiment",
    title="Did the writer of this review like the film?",
    summary="reviews of films, 2 labels, with an AWD-LSTM language model first (ULMFiT) and n-grams beside it",
    expected="0.91 accuracy on held-out reviews of other films; 65 minutes on 2 CPU cores",
    source=Source(
        name="aclImdb",
        official=Archive("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", size=84_125_825),
        mirrored=Archive(
            "text/aclImdb_49k.tar.xz",
            "29aa7ac528caf32a04d751f4906640ca815bb283d73dd08fc84087e44c2622fd",
            19_592_696,
        ),
        contains=("train/pos", "train/neg"),
    ),
    data=DataCard(
        name="Large Movie Review Dataset, Andrew Maas and others (2011)",
        licence="none given; research",
        address="https://ai.stanford.edu/~amaas/data/sentiment/",
        redistributable=False,
        description="25,000 reviews in English, half of them of 7 to 10 stars and half of 1 to 4; at most 30 a film.",
    ),
    # LSTMs in bfloat16 are no faster on a CPU.
    settings=replace(SentimentLearner.default_settings, precision="fp32"),
    options=_OPTIONS,
    on_gpu=Preset(
        replace(SentimentLearner.default_settings, epochs=4),
        replace(
            _OPTIONS,
            vocabulary=30_000,
            embedding=400,
            hidden=1152,
            layers=3,
            frequent=4000,
            lm_epochs=4,
            tuning_epochs=4,
            lm_dropout=1.0,
            longest=1000,
        ),
    ),
    intended_use="Whether a review in English, of a film or something like it, praises or condemns what it is about.",
    out_of_scope=(
        "Other languages, texts of a few words, irony, news, and what people think of people. It always says one of "
        "its two labels, also where a text praises nothing and condemns nothing."
    ),
    caveats=(
        "The reviews carry no licence: the model is for research and learning, and none of them is in this repository.",
    ),
    cpu_caveats=(
        "Trained with what a CPU affords: two LSTM layers of 320 and 160 units, where ULMFiT has three of up to 1,152, "
        "and a language model of these reviews rather than of a hundred million words. `docs/gpu.md` says what a GPU "
        "leaves room for.",
    ),
    min_metrics=(("accuracy", 0.90),),
)
