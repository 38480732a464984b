"""Faces in video frames, with 68 keypoints each, in the order of the iBUG 300-W challenge."""

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
"""Each part's name, number of points, and whether they form a closed line. Left and right are the person's own."""

_MIRRORED = {
    "jaw": ("jaw", tuple(range(17, 0, -1))),
    "right_eyebrow": ("left_eyebrow", (5, 4, 3, 2, 1)),
    "nose_base": ("nose_base", (5, 4, 3, 2, 1)),
    "right_eye": ("left_eye", (4, 3, 2, 1, 6, 5)),
    "outer_lip": ("outer_lip", (7, 6, 5, 4, 3, 2, 1, 12, 11, 10, 9, 8)),
    "inner_lip": ("inner_lip", (5, 4, 3, 2, 1, 8, 7, 6)),
}
"""For points 1, 2, … of each part: the part and the numbers that they have in a mirrored image."""


def _names() -> tuple[str, ...]:
    return tuple(f"{part}_{number}" for part, count, _ in _PARTS for number in range(1, count + 1))


def _links() -> tuple[str, ...]:
    links = []
    for part, count, closed in _PARTS:
        links += [f"{part}_{number}={part}_{number + 1}" for number in range(1, count)]
        links += [f"{part}_{count}={part}_1"] if closed else []
    return tuple(links)


def _flip_pairs() -> tuple[str, ...]:
    pairs = []
    for part, (other, numbers) in _MIRRORED.items():
        for number, mirrored in enumerate(numbers, 1):
            if part != other or number < mirrored:
                pairs.append(f"{part}_{number}={other}_{mirrored}")
    return tuple(pairs)


_OPTIONS = Options(
    frozen_epochs=0,
    tables=("training_frames_keypoints.csv", "test_frames_keypoints.csv"),
    image_folders=("training", "test"),
    names=_names(),
    group_pattern=r"^(.*)_\d+\.\w+$",
    normalisation_pair=("right_eye_1", "left_eye_4"),
    flip_pairs=_flip_pairs(),
    links=_links(),
    outside="drop",
    max_rotation=20.0,
    min_scale=0.8,
    max_scale=1.4,
    erase_probability=0.3,
    tta=True,
)

RECIPE = Recipe(
    name="faces",
    task="keypoints",
    title="Where are the eyes, the nose, the mouth and the outline of this face?",
    summary="faces in video frames, 68 keypoints, with a MobileNetV2 and heat maps",
    expected=(
        "mean error of 0.049 of the distance between the outer corners of the eyes, on unseen people; 33 minutes on "
        "one thread of a busy CPU"
    ),
    source=Source(
        name="facial-keypoints",
        # GitHub creates this archive on demand, so that its hash is not stable: it is checked by its content.
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
            "Video frames of public figures (YouTube Faces, Wolf, Hassner and Maoz 2011), cropped to head and "
            "shoulders, with 68 points each; the people are identifiable. The official lists overlap in people, so "
            "both are read together, and all frames of a person are on one side of the split."
        ),
    ),
    settings=Settings(epochs=20, batch_size=32),
    options=_OPTIONS,
    on_gpu=Preset(
        Settings(epochs=60, batch_size=64),
        replace(_OPTIONS, backbone="resnet50", size=192, frozen_epochs=1, max_rotation=30.0, max_scale=1.6),
    ),
    intended_use=(
        "Learning and demonstrating keypoint detection; aligning, or placing drawings on, faces that were cropped with "
        "some margin."
    ),
    out_of_scope=(
        "Identifying people, judging feelings, age or character, surveillance, and any decision about a person. It "
        "does not detect faces: crop the face first; an image with several faces, or none, gets 68 points too."
    ),
    caveats=(
        "Trained on research-only data of identifiable people, public figures in YouTube videos: read its terms before "
        "using this model for anything but research. Its goldens show a drawn face, not a person.",
        "How the points were annotated is not documented. In faces turned far away, and behind hands and microphones, "
        "they are guesses, which the model learns.",
        "The data is small and unbalanced: mostly adults in studio light. Performance on children, across skin tones "
        "and in poor light was not measured.",
    ),
    cpu_caveats=(
        "Trained on a CPU budget: images of 128 pixels, a small backbone and 20 epochs. See `docs/gpu.md` for the "
        "settings on a GPU.",
    ),
    max_metrics=(("mean_error", 0.06),),
)
