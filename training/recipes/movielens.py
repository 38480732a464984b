"""Films that people rated at movielens.org: which one will they like next?"""

from dataclasses import replace

from training.core.recipe import DataCard, Recipe
from training.core.sources import Archive, Source
from training.learners.recommendations.learner import Options, RecommendationsLearner

_SHA256 = "fca5fac753e8fef3162a0fb6b7271fe242ca8020f8d7d42bf4f83186d04368da"

RECIPE = Recipe(
    name="movielens",
    task="recommendations",
    title="Which film will this user like next?",
    summary="9,724 films and 610 users of movielens.org, by what they liked before",
    expected="nDCG@10 0.08 on each user's last liked film, twice that of co-occurrence, 1.2 times of its best variant; "
    "5 minutes on a CPU core",
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
            "The licence is the data's own: it may be used for research, and passed on, transformations included, "
            "under the same conditions; not for commercial or revenue-bearing purposes unless GroupLens permits it; "
            "publications acknowledge it; no endorsement by the University of Minnesota or GroupLens may be implied; "
            "it comes without warranty. `items.json` and `users.json` are transformations of it, and so bound. Source: "
            "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM "
            "Transactions on Interactive Intelligent Systems 5, 4: 19:1–19:19, https://doi.org/10.1145/2827872. It "
            "was made between 1996 and 2018; its users are known by a number, and chosen among those with 20 ratings "
            "or more; GroupLens calls it a set for development, and not for shared research results."
        ),
    ),
    settings=replace(RecommendationsLearner.default_settings, epochs=6, seeds=3),
    options=Options(liked=4.0, features=("genres",), window=64, ahead=1),
    intended_use="Learning and showing how recommendations are trained, judged and served.",
    out_of_scope=(
        "Commercial use, which the data's licence rules out. Other catalogues and other people: 610 users of one site "
        "say little of anybody else. Films after 2018."
    ),
    min_metrics=(("ndcg_over_sar", 1.0), ("ndcg_over_popularity", 2.0)),
)
