"""The accuracy tab: its figures equal scikit-learn's, computed from the raw log and the raw feedback."""

import random
import time
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from sklearn import metrics

from controlplane.audit.services import Actor
from controlplane.catalog.models import ModelVersion
from controlplane.dashboard.pages.accuracy import accuracy_page
from controlplane.dashboard.pages.figures import read_window
from controlplane.deployments.models import Deployment
from controlplane.predictions.feedback import Asker, give_feedback
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.models import Feedback, Prediction
from controlplane.predictions.truths import Statement
from inference.contracts import Role, Source, SpoolRecord
from tests.controlplane.predictions.records import served

pytestmark = pytest.mark.django_db

EVIL = "<script>alert(1)</script>"


def asker(deployment: Deployment) -> Asker:
    return Asker(Actor("user:owner"), {deployment.pk: deployment})


def labelled(deployment: Deployment, version: ModelVersion, count: int, seed: int, **fields: Any) -> list[SpoolRecord]:
    """Served calls whose score for fraud says something about what is then reported of them, in the past hour."""
    generator = random.Random(seed)
    records, statements = [], []
    for index in range(count):
        is_fraud = generator.random() < 0.3
        score = min(0.999, max(0.001, generator.gauss(0.62 if is_fraud else 0.33, 0.18)))
        at = time.time() - 3000 + index * 2
        record = served(deployment, version, at=at, scores={"ok": [1 - score], "fraud": [score]}, **fields)
        records.append(record)
        statements.append((record.id, "fraud" if is_fraud else "ok", index % 4 == 0))
    record_predictions(records)
    known = Prediction.objects.in_bulk([record.id for record in records])
    ids = {str(pk): pk for pk in known}
    given = give_feedback(
        asker=asker(deployment),
        statements=[
            Statement(truth={"label": label}, prediction_id=ids[identity], blind=blind)
            for identity, label, blind in statements[: count - 10]
        ],
    )
    assert all(one.error is None for one in given)
    return records


def raw(version: ModelVersion, blind_only: bool = False) -> tuple[list[str], list[str], list[float]]:
    """Truths, decisions and scores for fraud, from the log's and the feedback's own rows."""
    truths, said, scores = [], [], []
    found = Feedback.objects.filter(latest=True).exclude(prediction_id=None)
    for feedback in found.filter(blind=True) if blind_only else found:
        prediction = Prediction.objects.get(pk=feedback.prediction_id)
        if prediction.version_id == version.pk:
            score = prediction.scores["fraud"][0]
            truths.append(feedback.truth["label"])
            said.append("fraud" if score > prediction.scores["ok"][0] else "ok")
            scores.append(score)
    return truths, said, scores


def test_the_tab_equals_scikit_learn_over_the_raw_log(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    labelled(deployment, versions[0], 260, 1)
    labelled(deployment, versions[1], 120, 2)
    told = owners.get("/api/deployments/checkout/accuracy/?since=2h").json()
    for version, told_version in zip(versions, told["versions"], strict=True):
        truths, said, scores = raw(version)
        values = {name: metric["value"] for name, metric in told_version["metrics"].items()}
        assert told_version["n"] == len(truths)
        assert values["accuracy"] == pytest.approx(metrics.accuracy_score(truths, said), abs=1e-6)
        assert values["f1"] == pytest.approx(metrics.f1_score(truths, said, average="macro"), abs=1e-6)
        assert values["precision"] == pytest.approx(metrics.precision_score(truths, said, average="macro"), abs=1e-6)
        fraud = next(label for label in told_version["labels"] if label["label"] == "fraud")
        exact = metrics.roc_auc_score([truth == "fraud" for truth in truths], scores)
        assert fraud["auroc"]["value"] == pytest.approx(exact, abs=fraud["auroc_binning"] + 1e-6)
        assert fraud["auroc_binning"] < 0.01
        truths, said, _ = raw(version, blind_only=True)
        blind = told_version["blind"]
        assert (blind["n"], blind["metrics"]["accuracy"]["value"]) == (
            len(truths),
            pytest.approx(metrics.accuracy_score(truths, said), abs=1e-6),
        )
    first = told["versions"][0]
    assert (first["labelled"], first["predictions"]) == (250, 260)
    assert first["coverage"]["value"] == pytest.approx(250 / 260, abs=1e-6)
    assert first["delay_ms"]["median"] > 0
    assert sum(first["series_n"]) == 250


def test_the_page_says_what_it_rests_on(
    owners: Client, outsiders: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    labelled(deployment, versions[0], 200, 3)
    labelled(deployment, versions[1], 60, 4, role=Role.SHADOW, source=Source.SHADOW)
    page = owners.get("/deployments/checkout/accuracy/").content.decode()
    assert "over 190 labels" in page
    assert "version 2 · shadow" in page
    assert "Best constant answer" in page
    assert "Verdicts given blind" in page
    assert "of 200" in page
    assert outsiders.get("/deployments/checkout/accuracy/").status_code == 404
    live = owners.get("/deployments/checkout/accuracy/", headers={"HX-Request": "true"})
    assert b"<html" not in live.content


def test_without_feedback_the_tab_teaches_how_to_give_it(owners: Client, deployment: Deployment) -> None:
    page = owners.get("/deployments/checkout/accuracy/").content.decode()
    assert "Nobody has said what really happened yet" in page
    assert "/feedback/" in page


def test_a_version_that_beats_nothing_is_said_to(deployment: Deployment, versions: list[ModelVersion]) -> None:
    records = [served(deployment, versions[0], at=time.time() - 60) for _ in range(40)]
    record_predictions(records)
    found = Prediction.objects.in_bulk([record.id for record in records])
    give_feedback(
        asker=asker(deployment),
        statements=[
            Statement(truth={"label": "ok" if index % 5 else "fraud"}, prediction_id=pk)
            for index, pk in enumerate(found)
        ],
    )
    page = accuracy_page(deployment, read_window({"range": "1h"}, timezone.now()))
    assert page.tone == "warn"
    assert "Version 1 is not shown to be better than a constant answer." in page.sentence
    assert page.constant_answer == "ok"


def test_labels_out_of_a_model_file_are_escaped(
    owners: Client, deployment: Deployment, versions: list[ModelVersion]
) -> None:
    versions[0].labels = [EVIL, "fraud"]
    versions[0].save(update_fields=["labels"])
    records = [served(deployment, versions[0], scores={EVIL: [0.9], "fraud": [0.1]}) for _ in range(3)]
    record_predictions(records)
    statements = [
        Statement(truth={"label": EVIL}, prediction_id=pk) for pk in Prediction.objects.values_list("pk", flat=True)
    ]
    give_feedback(asker=asker(deployment), statements=statements)
    page = owners.get("/deployments/checkout/accuracy/").content.decode()
    assert "alert(1)" in page
    assert EVIL not in page


def test_the_tab_costs_the_same_after_many_predictions(
    owners: Client,
    deployment: Deployment,
    versions: list[ModelVersion],
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    labelled(deployment, versions[0], 30, 5)
    owners.get("/deployments/checkout/accuracy/")
    with django_assert_max_num_queries(12) as few:
        owners.get("/deployments/checkout/accuracy/")
    labelled(deployment, versions[1], 200, 6)
    with django_assert_max_num_queries(12) as many:
        owners.get("/deployments/checkout/accuracy/")
    assert len(few) == len(many)
