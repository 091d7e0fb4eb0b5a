"""TensorFlow Serving's REST API: https://www.tensorflow.org/tfx/serving/api_rest, with named features and pictures."""

from collections.abc import Collection
from typing import Any

import msgspec

from inference.contracts import Datatype, DeploymentRoute, VersionRoute
from inference.errors import InferenceError
from inference.runtime.plans import Array, VersionPlan, plan_of
from inference.runtime.scores import labelled
from inference.runtime.tensors import (
    dumps,
    from_json,
    non_finite_warnings,
    pack_table,
    row_to_json,
    rows_to_json,
    to_json,
)
from inference.server.protocols import PICTURE_TYPES, Call, Headers, Reply, content_type, refuse_media_type
from inference.server.protocols.body import (
    SHORT_BYTES,
    bad_request,
    count_colons,
    may_hold_booleans,
    mistaken_for,
    parse,
    refuse_duplicate_keys,
)
from inference.server.protocols.features import (
    cap_rows,
    check_rows,
    count_keys,
    inputs_of_columns,
    inputs_of_objects,
    is_bytes,
    only_input,
    pictures_of,
    refuse,
    stacked,
)

_JSON = b"application/json"


class Style(msgspec.Struct):
    """How the call was written. `by_row`: `instances`, else `inputs`. `count`: how many instances it named."""

    by_row: bool
    count: int


def decode(body: bytes, headers: Headers, deployment: DeploymentRoute, version: VersionRoute) -> Call:
    """The call in a `:predict` body; JSON under any Content-Type but forms with parts and XML, or a raw picture."""
    if headers.get(b"content-type") != _JSON and (kind := content_type(headers)):
        if kind in PICTURE_TYPES:
            return picture_call(body, kind, version)
        refuse_media_type(kind)
    plan = plan_of(version)
    return decode_document(parse(body, lenient=plan.lenient), body, deployment, plan)


def decode_document(document: Any, body: bytes, deployment: DeploymentRoute, plan: VersionPlan) -> Call:
    """The call in a parsed V1 document; `body` is what it was parsed from. Raises InferenceError."""
    if type(document) is not dict:
        raise bad_request("The body must be a JSON object with instances or inputs.")
    if type(document.get("signature_name", "")) is not str:
        raise bad_request("signature_name must be a text.", "signature_name")
    if "instances" in document:
        if "inputs" in document:
            raise bad_request("The body has both instances and inputs; send one of them.", "inputs")
        return decode_rows(document["instances"], len(document), body, deployment, plan)
    if "inputs" in document:
        return _decode_columns(document, body, deployment, plan)
    near = mistaken_for(document, ("instances", "inputs"))
    raise bad_request(f"The body has neither instances nor inputs{near}")


def picture_call(body: bytes, kind: bytes, version: VersionRoute) -> Call:
    """A call whose body is one picture; raises unsupported_media_type where the deployment takes none."""
    if not version.task.takes_pictures:
        message = f"This deployment takes no pictures; send application/json, not {kind.decode('latin-1')}."
        raise InferenceError("unsupported_media_type", message)
    if not body:
        raise InferenceError("empty_body")
    return Call({}, 1, pictures=[body], style=Style(by_row=True, count=1))


def decode_rows(rows: Any, keys: int, body: bytes, deployment: DeploymentRoute, plan: VersionPlan) -> Call:
    """The call of a list of instances; `keys`: how many keys the body holds outside of it. Raises InferenceError."""
    if type(rows) is not list or not rows:
        what = "is empty; at least one row is needed" if rows == [] else "must be a list of rows"
        refuse(
            "wrong_shape", f"{what} ({', '.join(f'{t.name} has shape {t.expected}' for t in plan.inputs)})", "instances"
        )
    count = len(rows)
    cap_rows(count, deployment)
    style = Style(by_row=True, count=count)
    if (tensor := plan.table) is not None and count_colons(body) == keys:
        table = pack_table(rows, tensor, booleans=len(body) < SHORT_BYTES or may_hold_booleans(body))
        if table is not None:
            return Call({tensor.name: table}, count, style=style)
    if type(rows[0]) is dict:
        if plan.pictures and (pictures := pictures_of(rows, "instances", plan)) is not None:
            refuse_duplicate_keys(body, keys + count_keys(rows))
            return Call({}, count, pictures=pictures, style=style)
        if not is_bytes(rows[0]):
            inputs = inputs_of_objects(rows, plan)
            if count_colons(body) != keys + count * len(rows[0]):
                refuse_duplicate_keys(body, keys + count_keys(rows))
            return Call(inputs, check_rows(inputs, plan), style=style)
    tensor = only_input(plan, "instances")
    inputs = {tensor.name: stacked(rows, tensor, plan, lambda path: ["instances", *path])}
    if count_colons(body) != keys:
        refuse_duplicate_keys(body, keys + count_keys(rows))
    return Call(inputs, check_rows(inputs, plan), style=style)


def _decode_columns(document: dict[str, Any], body: bytes, deployment: DeploymentRoute, plan: VersionPlan) -> Call:
    value = document["inputs"]
    refuse_duplicate_keys(body, len(document) + count_keys(value))
    if plan.pictures:
        name = plan.inputs[0].name
        files = value[name] if type(value) is dict and value.keys() == {name} else value
        listed = files if type(files) is list else [files]
        pictures = pictures_of(listed, "inputs", plan) if listed else None
        if pictures is not None:
            cap_rows(len(pictures), deployment)
            return Call({}, len(pictures), pictures=pictures, style=Style(by_row=False, count=len(pictures)))
    if type(value) is dict and not is_bytes(value):
        inputs = inputs_of_columns(value, plan)
    else:
        tensor = only_input(plan, "inputs")
        inputs = {tensor.name: from_json(value, tensor, lambda path: ["inputs", *path])}
    count = check_rows(inputs, plan)
    cap_rows(count, deployment)
    return Call(inputs, count, style=Style(by_row=False, count=count))


def encode(
    call: Call, outputs: dict[str, Array], deployment: DeploymentRoute, version: VersionRoute, prediction_id: str
) -> Reply:
    """`predictions` for a call by row, `outputs` for one by column; labelled scores where pictures were sent."""
    document = _answer(call, outputs, version)
    reply = dumps(document)
    # NaN and infinities become null; numbers write no other null, so nearly every reply is done here.
    if b"null" in reply and (warnings := non_finite_warnings(outputs)):
        reply = dumps({**document, "warnings": warnings})
    return _JSON, [], reply


def _answer(call: Call, outputs: dict[str, Array], version: VersionRoute) -> dict[str, Any]:
    style: Style = call.style
    # Who sends a tensor, as a client of TensorFlow Serving does, is answered in tensors, whatever the model is for.
    if call.pictures:
        return {"predictions" if style.by_row else "outputs": labelled(version, outputs)}
    count = style.count
    if style.by_row and (count == 1 or any(array.shape[:1] != (count,) for array in outputs.values())):
        # One prediction; without a batch dimension it is the whole output.
        values = {name: row_to_json(array) for name, array in outputs.items()}
        return {"predictions": [next(iter(values.values())) if len(values) == 1 else values]}
    if style.by_row and len(outputs) != 1:
        return {"predictions": rows_to_json(outputs)}
    values = {name: to_json(array) for name, array in outputs.items()}
    return {"predictions" if style.by_row else "outputs": next(iter(values.values())) if len(values) == 1 else values}


def status(deployment: DeploymentRoute, ready: Collection[int], number: int | None) -> bytes:
    """TensorFlow Serving's model status: of one version, or of all; raises not_found for an unknown number."""
    if number is not None and number not in deployment.versions:
        raise InferenceError("not_found", f"{deployment.name} has no version {number}.")
    numbers = sorted(deployment.versions) if number is None else [number]
    return dumps(
        {
            "model_version_status": [
                {
                    "version": str(each),
                    "state": "AVAILABLE" if each in ready else "LOADING",
                    "status": {"error_code": "OK", "error_message": ""},
                }
                for each in numbers
            ]
        }
    )


_TENSORFLOW_TYPES = {
    Datatype.BOOL: "DT_BOOL",
    Datatype.UINT8: "DT_UINT8",
    Datatype.UINT16: "DT_UINT16",
    Datatype.UINT32: "DT_UINT32",
    Datatype.UINT64: "DT_UINT64",
    Datatype.INT8: "DT_INT8",
    Datatype.INT16: "DT_INT16",
    Datatype.INT32: "DT_INT32",
    Datatype.INT64: "DT_INT64",
    Datatype.FP16: "DT_HALF",
    Datatype.FP32: "DT_FLOAT",
    Datatype.FP64: "DT_DOUBLE",
    Datatype.BYTES: "DT_STRING",
}


def metadata(deployment: DeploymentRoute, version: VersionRoute) -> bytes:
    """TensorFlow Serving's model metadata: one signature, `serving_default`, made from the graph's."""
    sides = {
        side: {
            spec.name: {
                "name": spec.name,
                "dtype": _TENSORFLOW_TYPES[spec.datatype],
                "tensor_shape": {
                    "dim": [
                        {"size": str(size), "name": spec.dims[axis] if axis < len(spec.dims) else ""}
                        for axis, size in enumerate(spec.shape)
                    ],
                    "unknown_rank": False,
                },
            }
            for spec in specs
        }
        for side, specs in (("inputs", version.signature.inputs), ("outputs", version.signature.outputs))
    }
    signature = {"serving_default": {**sides, "method_name": "tensorflow/serving/predict"}}
    return dumps(
        {
            "model_spec": {"name": deployment.name, "signature_name": "", "version": str(version.number)},
            "metadata": {"signature_def": {"signature_def": signature}},
        }
    )
