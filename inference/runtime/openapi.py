"""One deployment's prediction API as an OpenAPI 3.1 document and as programs that run, both made from the signature.

Examples are real: sent with a key that may call the deployment, each of them is answered 200.
"""

import json
import shlex
from typing import Any

from inference.contracts import Datatype, DeploymentRoute, TensorSpec, VersionRoute
from inference.errors import TABLE
from inference.runtime.plans import plan_of
from inference.runtime.sample_calls import is_whole, v1_body, v1_filled, v2_body, v2_specs

_JSON_TYPES: dict[Datatype, dict[str, Any]] = {
    Datatype.BOOL: {"type": "boolean"},
    Datatype.UINT8: {"type": "integer", "minimum": 0, "maximum": 2**8 - 1},
    Datatype.UINT16: {"type": "integer", "minimum": 0, "maximum": 2**16 - 1},
    Datatype.UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    Datatype.UINT64: {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
    Datatype.INT8: {"type": "integer", "minimum": -(2**7), "maximum": 2**7 - 1},
    Datatype.INT16: {"type": "integer", "minimum": -(2**15), "maximum": 2**15 - 1},
    Datatype.INT32: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    Datatype.INT64: {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    Datatype.FP16: {"type": "number"},
    Datatype.FP32: {"type": "number"},
    Datatype.FP64: {"type": "number"},
    Datatype.BYTES: {"type": "string"},
}
# Stands in the programs for the caller's own key.
KEY_PLACEHOLDER = "sb_YOUR_KEY"
_LANGUAGES = {"curl": ("Shell", "bash"), "python": ("Python", "python"), "javascript": ("JavaScript", "javascript")}
_ALWAYS = {
    "X-Prediction-Id": "Names this prediction; feedback refers to it.",
    "X-Model-Version": "The number of the version that answered.",
    "X-Split-Revision": "The split in force.",
    "X-Request-Id": "Names this call in the logs.",
}
_OF_LIMITED_KEYS = {
    "RateLimit-Limit": "Where the key has limits: calls of the one with fewer calls left.",
    "RateLimit-Remaining": "How many of them are left.",
    "RateLimit-Reset": "Seconds until all of them are free again.",
    "RateLimit-Policy": "All limits of the key, each with its window in seconds.",
}
_OF_KEPT_ANSWERS = {"X-Cache": "`hit` where the answer was kept from an earlier call, else `miss`."}
_REFUSALS = ("400", "401", "403", "404", "410", "413", "415", "422", "429", "503", "504")


def describe(
    deployment: DeploymentRoute, version: VersionRoute, base_url: str, sample: dict[str, list[Any]] | None = None
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the V1 and V2 predict calls; `base_url` has no slash at its end.

    The programs of `examples` stand in the V1 call's description, for people, and under x-codeSamples, for tools.
    `sample`: values of one row by column name, or of one row by input name, that examples show instead of
    neutral ones.
    """
    name = deployment.name
    programs = examples(deployment, version, base_url, KEY_PLACEHOLDER, sample)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{name} prediction API",
            "version": str(version.number),
            "description": f"Predictions of {name} ({version.task}), served by version {version.number} of the model "
            f"{version.model}. Version shares may change; the answer's X-Model-Version says which version answered.",
        },
        "servers": [{"url": base_url}],
        "security": [{"key": []}],
        "paths": {
            f"/v1/models/{name}:predict": {"post": {**_predict(deployment, version, sample), **_shown(programs)}},
            f"/v2/models/{name}/infer": {"post": _infer(deployment, version, sample)},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key, sb_..."}},
            "schemas": {"Error": _error_schema()},
            "headers": {
                name: {"description": text, "schema": {"type": "string"}, "required": name in _ALWAYS}
                for name, text in _headers(deployment).items()
            },
        },
    }


def examples(
    deployment: DeploymentRoute,
    version: VersionRoute,
    base_url: str,
    key_placeholder: str,
    sample: dict[str, list[Any]] | None = None,
) -> dict[str, str]:
    """Programs that make the V1 call and print the answer: `curl` (a shell line), `python`, `javascript` (Node 20).

    None needs a package; a JavaScript module, for its top-level await (`node --input-type=module`). The key is
    written where `key_placeholder` says.
    """
    url = f"{base_url}/v1/models/{deployment.name}:predict"
    document = v1_body(version, sample)
    if document is None:
        program = f"import json; print(json.dumps({v1_filled(version, python=True)}))"
        curl, sent = f"python3 -c {shlex.quote(program)} |\n", "@-"
        python_body, script_body = v1_filled(version, python=True), v1_filled(version, python=False)
    else:
        shown = json.dumps(document)
        curl, sent = "", shlex.quote(shown)
        python_body, script_body = f"json.loads({shown!r})", shown
    curl += (
        f"curl --silent --show-error --fail-with-body '{url}' \\\n"
        f"  --header 'Authorization: Bearer {key_placeholder}' \\\n"
        f"  --header 'Content-Type: application/json' \\\n"
        f"  --data-binary {sent}\n"
    )
    python = (
        "import json\n"
        "import urllib.request\n\n"
        f"body = {python_body}\n"
        "request = urllib.request.Request(\n"
        f"    {url!r},\n"
        "    data=json.dumps(body).encode(),\n"
        f'    headers={{"Authorization": "Bearer {key_placeholder}", "Content-Type": "application/json"}},\n'
        ")\n"
        "with urllib.request.urlopen(request) as answer:\n"
        "    print(json.dumps(json.load(answer), indent=2))\n"
    )
    javascript = (
        f"const body = {script_body};\n"
        f"const answer = await fetch({json.dumps(url)}, {{\n"
        '  method: "POST",\n'
        f'  headers: {{ "Authorization": "Bearer {key_placeholder}", "Content-Type": "application/json" }},\n'
        "  body: JSON.stringify(body),\n"
        "});\n"
        "if (!answer.ok) throw new Error(await answer.text());\n"
        "console.log(JSON.stringify(await answer.json(), null, 2));\n"
    )
    return {"curl": curl, "python": python, "javascript": javascript}


def _predict(deployment: DeploymentRoute, version: VersionRoute, sample: dict[str, list[Any]] | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "instances": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": deployment.max_rows,
                        "items": _row(version),
                    },
                    "signature_name": {"type": "string"},
                },
                "required": ["instances"],
            },
            **_example(v1_body(version, sample)),
        }
    }
    if version.task.takes_pictures:
        for kind in ("image/png", "image/jpeg", "application/dicom"):
            content[kind] = {"schema": {"type": "string", "contentMediaType": kind}}
    answer = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": _prediction(version)}},
        "required": ["predictions"],
    }
    return _operation(deployment, "Predict, TensorFlow Serving style", "predict", content, answer)


def _infer(deployment: DeploymentRoute, version: VersionRoute, sample: dict[str, list[Any]] | None) -> dict[str, Any]:
    specs = v2_specs(version)
    schema = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": 128},
            "inputs": {
                "type": "array",
                "minItems": len(specs),
                "maxItems": len(specs),
                "items": {"oneOf": [_v2_tensor(spec) for spec in specs]},
            },
        },
        "required": ["inputs"],
    }
    answer = {
        "type": "object",
        "properties": {
            "model_name": {"type": "string", "const": deployment.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": {"oneOf": list(map(_v2_tensor, version.signature.outputs))}},
        },
        "required": ["model_name", "model_version", "outputs"],
    }
    content = {"application/json": {"schema": schema, **_example(v2_body(version, sample))}}
    return _operation(deployment, "Infer, Open Inference Protocol V2", "infer", content, answer)


def _shown(programs: dict[str, str]) -> dict[str, Any]:
    """The programs as an operation carries them."""
    named = [(*_LANGUAGES[name], name, source) for name, source in programs.items()]
    return {
        "description": "\n\n".join(f"```{fence}\n{source}```" for _, fence, _, source in named),
        "x-codeSamples": [{"lang": lang, "label": label, "source": source} for lang, _, label, source in named],
    }


def _example(body: dict[str, Any] | None) -> dict[str, Any]:
    return {} if body is None else {"example": body}


def _headers(deployment: DeploymentRoute) -> dict[str, str]:
    """The headers of an answer, and what they say."""
    kept = _OF_KEPT_ANSWERS if deployment.cache_ttl_s > 0 else {}
    return {**_ALWAYS, **kept, **_OF_LIMITED_KEYS}


def _operation(
    deployment: DeploymentRoute, summary: str, operation: str, content: dict[str, Any], answer: dict[str, Any]
) -> dict[str, Any]:
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        "200": {
            "description": "The prediction.",
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _headers(deployment)},
            "content": {"application/json": {"schema": answer}},
        }
    }
    for status in _REFUSALS:
        codes = ", ".join(sorted(code for code, kind in TABLE.items() if str(kind.status) == status))
        responses[status] = {"description": f"Refused: {codes}.", "content": refusal}
    return {
        "summary": summary,
        "operationId": operation,
        "requestBody": {"required": True, "content": content},
        "responses": responses,
    }


def _error_schema() -> dict[str, Any]:
    located = {
        "type": "object",
        "properties": {"loc": {"type": "array", "items": {"type": ["string", "integer"]}}, "msg": {"type": "string"}},
        "required": ["loc", "msg"],
    }
    return {
        "type": "object",
        "properties": {
            "error": {"type": "string"},
            "code": {"type": "string"},
            "errors": {"type": "array", "items": located},
            "retryable": {"type": "boolean"},
            "request_id": {"type": "string"},
        },
        "required": ["error", "code", "errors", "retryable", "request_id"],
    }


def _cell(spec: TensorSpec, *, nullable: bool = False) -> dict[str, Any]:
    schema = dict(_JSON_TYPES[spec.datatype])
    if nullable:
        schema["type"] = [schema["type"], "null"]
    return schema


def _nested(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    schema = _cell(spec)
    for size in reversed(shape):
        bounds = {"minItems": 1} if size < 0 else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    return schema


def _row(version: VersionRoute) -> dict[str, Any]:
    if version.task.takes_pictures:
        return {
            "type": "object",
            "properties": {"b64": {"type": "string", "contentEncoding": "base64", "description": "PNG, JPEG or DICOM"}},
            "required": ["b64"],
        }
    inputs = version.signature.inputs
    if plan_of(version).columns:
        return {
            "type": "object",
            "properties": {column.name: _cell(inputs[0], nullable=column.nullable) for column in version.columns},
            "required": [column.name for column in version.columns],
            "additionalProperties": False,
        }
    if len(inputs) == 1:
        return _nested(inputs[0], _instance_shape(inputs[0], version))
    return {
        "type": "object",
        "properties": {spec.name: _nested(spec, _instance_shape(spec, version)) for spec in inputs},
        "required": [spec.name for spec in inputs],
        "additionalProperties": False,
    }


def _instance_shape(spec: TensorSpec, version: VersionRoute) -> tuple[int, ...]:
    return spec.shape if is_whole(version) else spec.shape[1:]


def _prediction(version: VersionRoute) -> dict[str, Any]:
    if version.task.takes_pictures:
        scores = {"type": "object", "additionalProperties": {"type": "number"}}
        return {"type": "object", "properties": {"scores": scores, "label": {"type": ["string", "null"]}}}
    outputs = version.signature.outputs
    if len(outputs) == 1:
        return _nested(outputs[0], _instance_shape(outputs[0], version))
    return {
        "type": "object",
        "properties": {spec.name: _nested(spec, _instance_shape(spec, version)) for spec in outputs},
    }


def _v2_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"{spec.name} has shape [{', '.join('n' if size < 0 else str(size) for size in spec.shape)}].",
        "properties": {
            "name": {"type": "string", "const": spec.name},
            "datatype": {"type": "string", "const": str(spec.datatype)},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1},
                "minItems": len(spec.shape),
                "maxItems": len(spec.shape),
            },
            "data": {"type": "array", "items": _cell(spec)},
        },
        "required": ["name", "datatype", "shape", "data"],
    }
