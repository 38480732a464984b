"""MovieLens, film ratings from movielens.org: which film will a user like next?"""

from dataclasses import replace

from training.core.recipe import DataCard, Recipe
from training.core.sources import Archive, Source
from training.learners.recommendations.learner import Options, RecommendationsLearner

_SHA256 = "fca5fac753e8fef3162a0fb6b7271fe242ca8020f8d7d42bf4f83186d04368da"

RECIPE = Recipe(
    name="movielens",
    task="recommendations",
    title="Which film will this user like next?",
    summary="9,724 films and 610 users of movielens.org, from the films they liked before",
    expected="nDCG@10 0.08 on each user's last liked film, twice that of co-occurrence and 1.2 times that of its best "
    "variant; 5 minutes on a CPU core",
    source=Source(
        name="ml-latest-small",
        official=Archive("https://files.grouplens.org/datasets/movielens/ml-latest-small.zip", _SHA256, 977_925),
        mirrored=Archive("collab/ml-latest-small.zip", _SHA256, 977_925),
        contains=("ml-latest-small/ratings.csv", "ml-latest-small/movies.csv"),
    ),
    data=DataCard(
        name="MovieLens ml-latest-small (September 2018), GroupLens Research, University of Minnesota",
        licence="GroupLens terms: research, not commercial, passed on under the same terms",
        address="https://grouplens.org/datasets/movielens/",
        redistributable=True,
        share_alike=True,
        description=(
            "The data has its own licence: it may be used for research and redistributed, including transformations, "
            "under the same conditions; not for commercial or revenue-bearing purposes without permission of "
            "GroupLens; publications must acknowledge it; no endorsement by the University of Minnesota or GroupLens "
            "may be implied; there is no warranty. `items.json` and `users.json` are transformations of it. Source: F. "
            "Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM Transactions "
            "on Interactive Intelligent Systems 5, 4: 19:1–19:19, https://doi.org/10.1145/2827872. It was collected "
            "between 1996 and 2018; users are identified by a number and were selected from those with at least 20 "
            "ratings; GroupLens provides it for development, not for shared research results."
        ),
    ),
    settings=replace(RecommendationsLearner.default_settings, epochs=6, seeds=3),
    options=Options(liked=4.0, features=("genres",), window=64, targets_per_sample=1),
    intended_use="Learning and demonstrating how recommendations are trained, evaluated and served.",
    out_of_scope=(
        "Commercial use, which the data's licence forbids. Other catalogues and other populations: 610 users of one "
        "site are not representative. Films after 2018."
    ),
    min_metrics=(("ndcg_over_sar", 1.0), ("ndcg_over_popularity", 2.0)),
)
