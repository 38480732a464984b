"""Faces in frames of videos, with 68 points each, in the order of the iBUG 300-W challenge."""

from dataclasses import replace

from training.core.config import Settings
from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.keypoints.learner import Options

_PARTS = (
    ("jaw", 17, False),
    ("right_eyebrow", 5, False),
    ("left_eyebrow", 5, False),
    ("nose_bridge", 4, False),
    ("nose_base", 5, False),
    ("right_eye", 6, True),
    ("left_eye", 6, True),
    ("outer_lip", 12, True),
    ("inner_lip", 8, True),
)
"""Each part's name, its number of points, and whether they close to a ring. Left and right are the person's own."""

_MIRRORED = {
    "jaw": ("jaw", tuple(range(17, 0, -1))),
    "right_eyebrow": ("left_eyebrow", (5, 4, 3, 2, 1)),
    "nose_base": ("nose_base", (5, 4, 3, 2, 1)),
    "right_eye": ("left_eye", (4, 3, 2, 1, 6, 5)),
    "outer_lip": ("outer_lip", (7, 6, 5, 4, 3, 2, 1, 12, 11, 10, 9, 8)),
    "inner_lip": ("inner_lip", (5, 4, 3, 2, 1, 8, 7, 6)),
}
"""The part, and in it the points, that a mirror makes of each part's points 1, 2, …"""


def _names() -> tuple[str, ...]:
    return tuple(f"{part}_{number}" for part, count, _ in _PARTS for number in range(1, count + 1))


def _links() -> tuple[str, ...]:
    found = []
    for part, count, closed in _PARTS:
        found += [f"{part}_{number}={part}_{number + 1}" for number in range(1, count)]
        found += [f"{part}_{count}={part}_1"] if closed else []
    return tuple(found)


def _twins() -> tuple[str, ...]:
    found = []
    for part, (other, numbers) in _MIRRORED.items():
        for number, mirrored in enumerate(numbers, 1):
            if part != other or number < mirrored:
                found.append(f"{part}_{number}={other}_{mirrored}")
    return tuple(found)


_OPTIONS = Options(
    frozen_epochs=0,
    tables=("training_frames_keypoints.csv", "test_frames_keypoints.csv"),
    pictures=("training", "test"),
    names=_names(),
    group_pattern=r"^(.*)_\d+\.\w+$",
    between=("right_eye_1", "left_eye_4"),
    twins=_twins(),
    links=_links(),
    outside="drop",
    rotation=20.0,
    smallest=0.8,
    largest=1.4,
    hidden=0.3,
    tta=True,
)

RECIPE = Recipe(
    name="faces",
    task="keypoints",
    title="Where are the eyes, the nose, the mouth and the outline of this face?",
    summary="faces in frames of videos, 68 points, with a MobileNetV2 and heat maps",
    expected=(
        "a mean error of 0.049 of the distance between the outer corners of the eyes, on unseen people; 33 minutes on "
        "one thread of a busy CPU"
    ),
    source=Source(
        name="facial-keypoints",
        # GitHub makes this archive on demand: no hash of it is published, so it is known by what it holds.
        official=Archive("https://github.com/udacity/P1_Facial_Keypoints/archive/refs/heads/master.zip"),
        mirrored=Archive(
            "keypoints/facial-keypoints.tgz",
            "911c0c13ca1e0de4fc810ff61e37ca1a01bbdff70c2be8bbf147e1d3a81c929b",
            18_473_939,
        ),
        contains=("training_frames_keypoints.csv", "test_frames_keypoints.csv"),
    ),
    data=DataCard(
        name="Facial keypoints (Udacity P1), frames of the YouTube Faces database",
        licence="research use only",
        address="https://github.com/udacity/P1_Facial_Keypoints",
        description=(
            "Frames of public figures in videos (YouTube Faces, Wolf, Hassner and Maoz 2011), cut around head and "
            "shoulders, with 68 points each: identifiable people. The official lists share people; both are read "
            "together and people are held out whole."
        ),
    ),
    settings=Settings(epochs=20, batch_size=32),
    options=_OPTIONS,
    on_gpu=Preset(
        Settings(epochs=60, batch_size=64),
        replace(_OPTIONS, backbone="resnet50", size=192, frozen_epochs=1, rotation=30.0, largest=1.6),
    ),
    intended_use=(
        "Learning and showing how points are found; placing drawings on, or lining up, faces that were cut out of a "
        "picture with some room around them."
    ),
    out_of_scope=(
        "Telling who somebody is, judging feelings, age or character, surveillance, and any decision about a person. "
        "It finds no faces: cut the face out first; a picture of several faces, or of none, gets 68 points as well."
    ),
    caveats=(
        "Trained on research-only data of identifiable people, public figures in YouTube videos: look at its terms "
        "before you use this model for more than research. Its goldens show a drawn face, nobody's.",
        "The data does not say how its points were marked. In faces that are turned far away, and behind hands and "
        "microphones, they are guesses, and the model learns such guesses.",
        "The data is small and not balanced: mostly adults in studio light. How it does on children, on other skin and "
        "in poor light was not measured.",
    ),
    cpu_caveats=(
        "Trained with what a CPU affords: pictures of 128 pixels, a small backbone and 20 epochs. `docs/gpu.md` says "
        "what a GPU leaves room for.",
    ),
    max_metrics=(("mean_error", 0.06),),
)
