"""The plain sentence, and what does not fit the intended use: pure functions."""

import pytest

from controlplane.catalog.models import ModelVersion
from controlplane.studies.models import StudyPicture
from controlplane.studies.suggestion import PictureSuggestion, _sentence, decided, mismatches, unchecked

pytestmark = pytest.mark.unit

FINDINGS = ModelVersion(
    task="image-multilabel", labels=["mass", "nodule", "fluid"], thresholds={"mass": 0.5, "nodule": 0.3}
)
CLASSES = ModelVersion(task="image-classification", labels=["normal", "pneumonia"], thresholds={"pneumonia": 0.4})
PLAIN = ModelVersion(task="image-classification", labels=["normal", "pneumonia"])


def part(version: ModelVersion, label: str | None, labels: list[str], **scores: float) -> PictureSuggestion:
    return PictureSuggestion(StudyPicture(), "succeeded", decided(version, scores, label, labels), (), (), "", "cpu")


@pytest.mark.parametrize(
    ("version", "parts", "sentence"),
    [
        (FINDINGS, [("mass", ["mass"])], "One finding is above its threshold: mass (score 0.81)."),
        (
            FINDINGS,
            [("mass", ["mass", "nodule"])],
            "Two findings are above their thresholds: mass (score 0.81), nodule (score 0.34).",
        ),
        (FINDINGS, [(None, [])], "Nothing is above its threshold."),
        (FINDINGS, [(None, []), (None, [])], "Nothing is above its threshold in any of the 2 pictures."),
        (
            FINDINGS,
            [("mass", ["mass"]), (None, [])],
            "Above their threshold: Picture 1: mass (score 0.81). Nothing is above its threshold in picture 2.",
        ),
    ],
)
def test_the_sentence_claims_no_more_than_the_scores(
    version: ModelVersion, parts: list[tuple[str | None, list[str]]], sentence: str
) -> None:
    told = [part(version, label, labels, mass=0.811, nodule=0.339, fluid=0.11) for label, labels in parts]
    assert _sentence(told, version) == sentence


def test_a_version_of_single_labels_calls_nothing_normal() -> None:
    above = part(CLASSES, "pneumonia", [], normal=0.2, pneumonia=0.8)
    below = part(CLASSES, "normal", [], normal=0.9, pneumonia=0.1)
    assert _sentence([above], CLASSES) == "One finding is above its threshold: pneumonia (score 0.80)."
    assert _sentence([below], CLASSES) == "Nothing is above its threshold."
    assert _sentence([above, below], CLASSES) == (
        "Picture 1: One finding is above its threshold: pneumonia (score 0.80). "
        "Picture 2: Nothing is above its threshold."
    )
    plain = part(PLAIN, "pneumonia", [], normal=0.2, pneumonia=0.8)
    assert _sentence([plain], PLAIN) == "The highest score is that of “pneumonia” (0.80)."


def test_scores_stand_beside_their_thresholds_highest_first() -> None:
    scores = decided(FINDINGS, {"nodule": 0.2, "mass": 0.7, "fluid": 0.1}, "mass", ["mass"])
    assert [(score.label, score.threshold, score.above) for score in scores] == [
        ("mass", 0.5, True),
        ("nodule", 0.3, False),
        ("fluid", 0.5, False),
    ]


@pytest.mark.parametrize(
    ("intended", "tags", "count"),
    [
        ({"modality": "CR, DX"}, {"modality": "DX"}, 0),
        ({"modality": "CR, DX"}, {"modality": "CT"}, 1),
        ({"modality": "CR"}, {}, 0),
        ({}, {"modality": "CT", "view": "LL", "age": "001D"}, 0),
        ({"view": "PA or AP"}, {"view": "AP"}, 0),
        ({"view": "PA/AP"}, {"view": "LATERAL"}, 1),
        ({"body_part": "chest"}, {"body_part": "CHEST"}, 0),
        ({"body_part": "chest"}, {"body_part": "HAND"}, 1),
        ({"age_range": "1-5"}, {"age": "005Y"}, 0),
        ({"age_range": "1-5"}, {"age": "006Y"}, 1),
        ({"age_range": "1–5 years"}, {"age": "011M"}, 1),
        ({"age_range": "1 to 5 years"}, {"age": "013M"}, 0),
        ({"age_range": "18+"}, {"age": "017Y"}, 1),
        ({"age_range": "18+"}, {"age": "090Y"}, 0),
        ({"age_range": "under 6"}, {"age": "006Y"}, 1),
        ({"age_range": "adults"}, {"age": "006Y"}, 0),
        ({"age_range": "²+"}, {"age": "006Y"}, 0),
        ({"modality": "CR", "view": "PA", "age_range": "18-90"}, {"modality": "CT", "view": "LL", "age": "001D"}, 3),
    ],
)
def test_tags_are_checked_against_the_intended_use(intended: dict[str, str], tags: dict[str, str], count: int) -> None:
    assert len(mismatches(tags, intended)) == count


def test_what_a_picture_does_not_say_is_named() -> None:
    version = ModelVersion(intended_use={"modality": "CR", "view": "PA", "age_range": "18-90"})
    assert unchecked({"modality": "CR"}, version) == ["view", "age"]
    assert unchecked({}, None) == []
