"""Film reviews from the Internet Movie Database: did the writer like the film?"""

from dataclasses import replace

from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.sentiment.learner import Options, SentimentLearner

_OPTIONS = Options(files_per_group=100, corpus="wikitext-2")

RECIPE = Recipe(
    name="imdb",
    task="sentiment",
    title="Did the writer of this review like the film?",
    summary="film reviews, 2 labels, with an AWD-LSTM language model (ULMFiT) blended with n-grams",
    expected="accuracy 0.91 on held-out reviews of other films; 65 minutes on 2 CPU cores",
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
        description="25,000 reviews in English, half with 7 to 10 stars and half with 1 to 4; at most 30 per film.",
    ),
    # LSTMs are not faster in bfloat16 on a CPU.
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
            max_tokens=1000,
        ),
    ),
    intended_use="Whether an English review, of a film or something similar, is positive or negative.",
    out_of_scope=(
        "Other languages, texts of a few words, irony, news, and opinions about people. It always returns one of its "
        "two labels, even if a text expresses no opinion."
    ),
    caveats=(
        "The reviews have no licence: the model is for research and learning, and this repository contains none of "
        "them.",
    ),
    cpu_caveats=(
        "Trained on a CPU budget: two LSTM layers of 320 and 160 units, where ULMFiT has three of up to 1,152, and a "
        "language model trained on these reviews instead of a hundred million words. See `docs/gpu.md` for the "
        "settings on a GPU.",
    ),
    min_metrics=(("accuracy", 0.90),),
)
