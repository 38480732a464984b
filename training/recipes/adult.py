"""The census of 1994: does a person earn more than 50,000 dollars a year?"""

from dataclasses import replace

from training.core.recipe import DataCard, Recipe
from training.core.sources import Archive, Source
from training.learners.tabular.learner import Options, TabularLearner

_COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
)

RECIPE = Recipe(
    name="adult",
    task="tabular",
    title="Does this row of the 1994 census earn more than $50,000 a year?",
    summary="rows of the census of 1994, 2 classes, with embeddings and a perceptron",
    expected="0.867 accuracy and 0.923 ROC AUC on held-out rows, mean of three seeds; 2 minutes on 2 CPU cores",
    source=Source(
        name="adult",
        # The repository publishes no hash of its archive: it is known by what it holds.
        official=Archive("https://archive.ics.uci.edu/static/public/2/adult.zip"),
        mirrored=Archive(
            "tabular/adult_train.tgz", "b359c25dc70a499000e110e3fd03118ff97145f9bcbb0f440cd876e2e21fae9f", 411_825
        ),
        contains=("adult.data",),
    ),
    data=DataCard(
        name="Adult (Census Income), Barry Becker and Ronny Kohavi, UCI Machine Learning Repository",
        licence="CC-BY-4.0",
        address="https://doi.org/10.24432/C5XW20",
        redistributable=True,
        description="32,561 rows of adult.data, drawn from the US census of 1994; adult.test was not looked at.",
    ),
    settings=replace(TabularLearner.default_settings, seeds=3),
    options=Options(
        target="income",
        file="adult.data",
        header=_COLUMNS,
        # fnlwgt says how many people a row stands for, not what they earn; education-num is education once more.
        ignore=("fnlwgt", "education-num", "race", "sex"),
        audit=("sex", "race", "age"),
    ),
    intended_use="Learning and showing how a table is trained on and served; comparing methods on a known data set.",
    out_of_scope=(
        "Any decision about a person: credit, work, housing, insurance. The data is of 1994 and of one country, and "
        "what it holds of who earned how much is what it was then, discrimination included."
    ),
    caveats=(
        "`sex` and `race` are no inputs: rows may carry them and they are not read. That does not make the answers "
        "independent of them: `relationship` (Husband, Wife) all but names the sex. The tables by group show what is "
        "left.",
    ),
    min_metrics=(("accuracy_mean", 0.852), ("roc_auc_mean", 0.905)),
)
