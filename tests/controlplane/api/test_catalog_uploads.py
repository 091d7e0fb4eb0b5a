"""POST /api/models/{m}/versions/: good uploads, and rows 24 to 36 of the table of bad inputs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_package
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from onnx import TensorProto
from pytest_django import Settings

from controlplane.accounts.models import Team, User
from controlplane.catalog import storage
from controlplane.catalog.models import ModelVersion, RegisteredModel
from controlplane.catalog.services import register_model, validate_now
from tests.controlplane.cast import ACTOR, Caller, bearer, new_key
from tests.controlplane.catalog.uploads import Usage, files_below, zipped
from tests.inference import toys

pytestmark = [
    pytest.mark.urls("tests.controlplane.api.catalog_urls"),
    pytest.mark.django_db,
    pytest.mark.usefixtures("model", "sandbox"),
]

VERSIONS = "/api/models/fraud/versions/"
NOTHING_OF_OURS = re.compile(r"/onnxruntime|site-packages|Traceback|\.py\b|/tmp/|SELECT ")


@pytest.fixture
def model(team: Team, store: Path) -> RegisteredModel:
    return register_model(actor=ACTOR, team=team, name="fraud")


def file(content: bytes, name: str = "model.onnx") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content)


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer["Content-Type"] == "application/problem+json"
    assert body["status"] == status and body["request_id"] == answer["X-Request-Id"]
    assert not NOTHING_OF_OURS.search(answer.content.decode())
    return body


def rejected(caller: Caller, content: bytes, code: str, **fields: Any) -> str:
    """Uploads, validates, and returns the reason for which the version was rejected."""
    answer = caller.upload(VERSIONS, {"file": file(content), **fields})
    assert answer.status_code == 201, answer.content
    validate_now(ModelVersion.objects.latest("number"))
    body = caller.get(answer["Location"]).json()
    assert (body["state"], body["code"]) == ("rejected", code), body["reason"]
    assert body["report"]["ok"] is False and not NOTHING_OF_OURS.search(body["reason"])
    return str(body["reason"])


def test_an_upload_is_201_with_its_state_and_again_200(as_owner: Caller) -> None:
    form = {
        "labels": '["ok", "fraud"]',
        "columns": "amount,age,hour",
        "thresholds": '{"fraud": 0.7}',
        "notes": "trained on Monday",
        "source_commit": "abcdef1",
    }
    answer = as_owner.upload(VERSIONS, {"file": file(toys.classifier()), **form})
    assert answer.status_code == 201 and answer["Location"] == f"{VERSIONS}1/"
    body = answer.json()
    assert (body["model"], body["number"], body["state"], body["report"]) == ("fraud", 1, "uploaded", None)
    assert (body["labels"], body["thresholds"]) == (["ok", "fraud"], {"fraud": 0.7})
    assert (body["size_bytes"], body["created_by"]) == (len(toys.classifier()), "owner")
    again = as_owner.upload(VERSIONS, {"file": file(toys.classifier()), **form})
    assert again.status_code == 200 and again.json()["number"] == 1
    version = validate_now(ModelVersion.objects.get())
    assert version.state == "ready"


def test_a_key_with_the_scope_uploads(team: Team) -> None:
    _, plain = new_key(team, ["upload"])
    answer = bearer(plain).upload(VERSIONS, {"file": file(toys.classifier())})
    assert answer.status_code == 201
    assert answer.json()["created_by"] is None


def test_settings_may_come_as_files(as_owner: Caller) -> None:
    config = {"do_resize": True, "size": {"height": 8, "width": 8}, "do_grayscale": True, "do_normalize": False}
    answer = as_owner.upload(
        VERSIONS,
        {
            "file": file(toys.picture_classifier()),
            "preprocessor": SimpleUploadedFile("preprocessor_config.json", json.dumps(config).encode()),
            "labels": SimpleUploadedFile("config.json", b'{"id2label": {"0": "a", "1": "b", "2": "c"}}'),
        },
    )
    assert answer.status_code == 201
    assert (answer.json()["labels"], answer.json()["preprocessor"]) == (["a", "b", "c"], config)


def test_a_person_s_upload_needs_the_csrf_token(owner: User, store: Path) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    refused(client.post(VERSIONS, {"file": file(toys.classifier())}), 403, "forbidden")
    assert files_below(store) == []


# Rows 24 to 36


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!doctype html><html></html>",
        b"\x80\x04\x95\x10\x00\x00",
        zipped({"data.pkl": b"x"}),
        b"\x89HDF\r\n\x1a\n" + b"\x00" * 50,
        b"hello, world",
        b"\x1f\x8b\x08\x00",
    ],
)
def test_24_what_is_no_onnx_file_is_422_at_once(as_owner: Caller, content: bytes, store: Path) -> None:
    refused(as_owner.upload(VERSIONS, {"file": file(content)}), 422, "not_onnx")
    assert not ModelVersion.objects.exists() and files_below(store) == []


def test_25_a_truncated_or_damaged_file_is_rejected(as_owner: Caller) -> None:
    content = toys.classifier()
    rejected(as_owner, content[: len(content) // 2], "corrupt_model")


def test_26_a_file_over_the_cap_is_413_and_a_full_disk_507(
    as_owner: Caller, settings: Settings, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SIGNALBOX_MAX_MODEL_BYTES = 1000
    refused(as_owner.upload(VERSIONS, {"file": file(b"\x08" * 1001)}), 413, "too_large")
    settings.SIGNALBOX_MAX_MODEL_BYTES = 10**9
    free = storage.HEADROOM_BYTES
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**12, 0, free))
    body = refused(as_owner.upload(VERSIONS, {"file": file(toys.classifier())}), 507, "storage_full")
    assert body["retryable"] is True
    assert not ModelVersion.objects.exists() and files_below(store) == []


def test_26_a_declared_length_over_the_cap_is_413_before_a_byte_is_read(as_owner: Caller) -> None:
    answer = as_owner.upload(VERSIONS, {"file": file(toys.classifier())}, CONTENT_LENGTH=str(10**13))
    refused(answer, 413, "too_large")


def test_26_an_undeclared_length_is_411(as_owner: Caller) -> None:
    answer = as_owner.upload(VERSIONS, {"file": file(toys.classifier())}, CONTENT_LENGTH="")
    refused(answer, 411, "length_required")


@pytest.mark.parametrize(("opset", "ir_version"), [(999, toys.IR_VERSION), (toys.OPSET, 99)])
def test_27_an_opset_or_ir_version_of_the_future_is_rejected_with_the_newest(
    as_owner: Caller, opset: int, ir_version: int
) -> None:
    content = toys.saved(
        [toys.node("Relu", ["x"], ["y"])],
        [toys.tensor("x", TensorProto.FLOAT, ["n", 2])],
        [toys.tensor("y", TensorProto.FLOAT, ["n", 2])],
        opset=opset,
        ir_version=ir_version,
    )
    assert re.search(r"\d+", rejected(as_owner, content, "unsupported_opset"))


def graph(nodes: list[Any], outputs: list[str], **rest: Any) -> bytes:
    return toys.saved(
        nodes,
        [toys.tensor("x", TensorProto.FLOAT, ["n", 2])],
        [toys.tensor(name, TensorProto.FLOAT, ["n", 2]) for name in outputs],
        **rest,
    )


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (
            graph([toys.node("Fly", ["x"], ["y"], domain="com.example")], ["y"], domains={"com.example": 1}),
            "unsupported_operator",
        ),
        (graph([toys.node("Add", ["x", "b"], ["a"]), toys.node("Relu", ["a"], ["b"])], ["b"]), "invalid_graph"),
        (graph([toys.node("Relu", ["x"], ["y"]), toys.node("Abs", ["x"], ["y"])], ["y"]), "invalid_graph"),
        (graph([toys.node("Relu", ["x"], ["y"])], []), "invalid_graph"),
    ],
)
def test_28_a_graph_that_cannot_be_served_is_rejected(as_owner: Caller, content: bytes, code: str) -> None:
    rejected(as_owner, content, code)


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "a/../../etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_29_data_outside_the_file_is_rejected(as_owner: Caller, location: str) -> None:
    model = onnx_package.load_from_string(toys.classifier())
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    weights.external_data.add(key="length", value=str(2**60))
    rejected(as_owner, model.SerializeToString(), "external_data_not_allowed")


def test_30_a_memory_bomb_is_rejected_and_says_so(as_owner: Caller) -> None:
    assert "memory" in rejected(as_owner, toys.memory_bomb(), "validation_failed")


@pytest.mark.parametrize("kind", [TensorProto.COMPLEX64, TensorProto.BFLOAT16])
def test_31_a_type_that_cannot_be_served_is_rejected(as_owner: Caller, kind: int) -> None:
    assert "tensor of" in rejected(as_owner, toys.identity(kind), "unsupported_type")


def test_31_dynamic_dimensions_are_accepted_and_shown(as_owner: Caller) -> None:
    answer = as_owner.upload(VERSIONS, {"file": file(toys.dynamic())})
    validate_now(ModelVersion.objects.get())
    shown = as_owner.get(answer["Location"]).json()
    assert shown["state"] == "ready" and -1 in shown["signature"]["inputs"][0]["shape"]


def test_32_the_same_number_with_other_bytes_is_409(as_owner: Caller) -> None:
    assert as_owner.upload(VERSIONS, {"file": file(toys.classifier()), "number": "3"}).status_code == 201
    assert as_owner.upload(VERSIONS, {"file": file(toys.classifier()), "number": "3"}).status_code == 200
    answer = as_owner.upload(VERSIONS, {"file": file(toys.linear_regression()), "number": "3"})
    assert refused(answer, 409, "conflict")["errors"][0]["loc"] == ["number"]
    assert ModelVersion.objects.count() == 1


@pytest.mark.parametrize(
    ("fields", "code", "where"),
    [
        ({"labels": '["a", "a"]'}, "bad_labels", "labels"),
        ({"labels": '["a", '}, "bad_labels", "labels"),
        ({"columns": "a,a,b"}, "bad_columns", "columns"),
        ({"preprocessor": "{"}, "bad_preprocessor", "preprocessor"),
        ({"thresholds": '{"a": 2}'}, "validation_error", "thresholds"),
        ({"task": "guessing"}, "validation_error", "task"),
        ({"number": "0"}, "validation_error", "number"),
        ({"notes": "a\x00b"}, "validation_error", "notes"),
        ({"golden": SimpleUploadedFile("g.zip", b"not a zip")}, "bad_golden", "golden"),
        ({"reference": SimpleUploadedFile("r.csv", b"a,b,b\n1,2,3\n")}, "bad_reference", "reference"),
        ({"reference": "not a file"}, "validation_error", "reference"),
    ],
)
def test_34_settings_that_make_no_sense_are_422_at_once(
    as_owner: Caller, fields: dict[str, Any], code: str, where: str, store: Path
) -> None:
    body = refused(as_owner.upload(VERSIONS, {"file": file(toys.classifier()), **fields}), 422, code)
    assert body["errors"][0]["loc"][0] == where
    assert not ModelVersion.objects.exists() and files_below(store) == []


def test_34_settings_that_do_not_fit_the_graph_are_rejected(as_owner: Caller) -> None:
    rejected(as_owner, toys.classifier(), "bad_labels", labels="a,b,c")
    rejected(as_owner, toys.classifier(), "bad_columns", columns="a,b")


def test_35_a_form_without_its_end_or_its_file_leaves_nothing(as_owner: Caller, store: Path) -> None:
    refused(as_owner.upload(VERSIONS, {"notes": "no file"}), 422, "validation_error")
    whole = encode_multipart(BOUNDARY, {"file": file(toys.classifier())})
    cut = as_owner.client.generic("POST", VERSIONS, whole[:60], content_type=MULTIPART_CONTENT)
    assert 400 <= cut.status_code < 500
    unframed = as_owner.client.generic("POST", VERSIONS, b"x", content_type="multipart/form-data")
    refused(unframed, 400, "bad_request")
    refused(as_owner.post(VERSIONS, {"file": "x"}), 415, "unsupported_media_type")
    two = {"file": [file(toys.classifier()), file(toys.linear_regression())]}
    refused(as_owner.upload(VERSIONS, two), 422, "validation_error")
    assert not ModelVersion.objects.exists() and files_below(store) == []


def test_36_golden_inputs_that_fail_reject_the_version_with_the_reason(as_owner: Caller, tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    np.savez(path, features=np.zeros((1, 3), np.float32), probabilities=np.array([[0.9, 0.1]], np.float32))
    reason = rejected(as_owner, toys.classifier(), "golden_mismatch", golden=file(path.read_bytes(), "golden.npz"))
    assert reason
    np.savez(path, indices=np.array([[99]], np.int64), rows=np.zeros((1, 1), np.float32))
    assert ModelVersion.objects.get().artifact_id is None


def test_a_file_name_is_shown_and_never_used(as_owner: Caller, store: Path) -> None:
    for name in ("../../etc/passwd", "<svg onload=alert(1)>.onnx", "a\u202egpj.onnx", "x" * 4000 + ".onnx"):
        ModelVersion.objects.all().delete()
        answer = as_owner.upload(VERSIONS, {"file": file(toys.classifier(), name)})
        assert answer.status_code == 201
        shown = answer.json()["file_name"]
        assert "/" not in shown and "\u202e" not in shown and len(shown) <= 255
    assert [len(name) for name in files_below(store)] == [64]
