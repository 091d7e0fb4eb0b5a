"""Rows, features and pictures of a JSON document: named cells to tensors, counts against caps, exact refusals."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NoReturn

from inference.contracts import DeploymentRoute
from inference.errors import InferenceError, Located
from inference.runtime.cells import MAX_ERRORS, from_base64
from inference.runtime.plans import Array, TensorPlan, VersionPlan
from inference.runtime.tensors import from_json
from inference.server.protocols.body import did_you_mean

Path = tuple[str | int, ...]


def cap_rows(count: int, deployment: DeploymentRoute) -> None:
    """Raise batch_too_large where a call has more rows than the deployment accepts."""
    if count > deployment.max_rows:
        message = f"The call has {count} rows; {deployment.name} accepts {deployment.max_rows} in a call."
        raise InferenceError("batch_too_large", message)


def check_rows(inputs: dict[str, Array], plan: VersionPlan) -> int:
    """How many rows the inputs have, 1 for a model without a batch dimension; raises wrong_shape for a mismatch."""
    if not plan.batched:
        return 1
    if len(inputs) == 1:
        return len(next(iter(inputs.values())))
    counts: dict[str, int] = {name: array.shape[0] for name, array in inputs.items()}
    rows = next(iter(counts.values()))
    for name, count in counts.items():
        if count != rows:
            refuse("wrong_shape", f"Input {name} has {count} rows where another has {rows}.", name)
    return rows


def only_input(plan: VersionPlan, key: str) -> TensorPlan:
    """The version's one input; raises wrong_type where it has several, since bare values name none of them."""
    if len(plan.inputs) != 1:
        names = ", ".join(plan.by_name)
        refuse("wrong_type", f"The model has several inputs; name them in objects with the keys {names}.", key)
    return plan.inputs[0]


def stacked(
    values: list[Any], tensor: TensorPlan, plan: VersionPlan, place: Callable[[Path], list[str | int]]
) -> Array:
    """One value per instance as one tensor; `place` gives the path of a cell from (instance, *indices)."""
    if len(values) == 1 and not plan.batched and _depth(values) == len(tensor.shape) + 1:
        # A model without a batch dimension: the one instance is the whole tensor.
        return from_json(values[0], tensor, lambda path: place((0, *path)))
    return from_json(values, tensor, place)


def inputs_of_objects(rows: list[Any], plan: VersionPlan) -> dict[str, Array]:
    """The tensors of rows that are objects keyed by column, or by input. Raises unknown_feature and as `from_json`."""
    if plan.pick is not None and not (rows[0] and rows[0].keys() <= plan.by_name.keys()):
        try:
            fitting = set(map(len, rows)) == {len(plan.columns)}
            table = list(map(plan.pick, rows))
        except (KeyError, TypeError):
            fitting = False
        if not fitting:
            _refuse_features(((("instances", i), row) for i, row in enumerate(rows)), plan.columns)
        names = plan.columns
        tensor = plan.inputs[0]
        return {
            tensor.name: from_json(table, tensor, lambda path: ["instances", *path[:1], *(names[j] for j in path[1:2])])
        }
    names = tuple(plan.by_name)
    if any(type(row) is not dict or row.keys() != plan.by_name.keys() for row in rows):
        _refuse_features(((("instances", i), row) for i, row in enumerate(rows)), names)
    return {tensor.name: _input_of_objects(rows, tensor, plan) for tensor in plan.inputs}


def _input_of_objects(rows: list[dict[str, Any]], tensor: TensorPlan, plan: VersionPlan) -> Array:
    name = tensor.name
    values = [row[name] for row in rows]
    return stacked(values, tensor, plan, lambda path: ["instances", *path[:1], name, *path[1:]])


def inputs_of_columns(value: dict[str, Any], plan: VersionPlan) -> dict[str, Array]:
    """The tensors of one object that holds a list per column, or a value per input. Raises as `inputs_of_objects`."""
    if not plan.columns or value.keys() <= plan.by_name.keys():
        if value.keys() != plan.by_name.keys():
            _refuse_features([(("inputs",), value)], plan.by_name)
        return {tensor.name: _input_of_columns(value[tensor.name], tensor) for tensor in plan.inputs}
    names = plan.columns
    if value.keys() != set(names):
        _refuse_features([(("inputs",), value)], names)
    lengths = {name: len(value[name]) if type(value[name]) is list else -1 for name in names}
    for name, length in lengths.items():
        if length < 0 or length != lengths[names[0]]:
            refuse("wrong_shape", "every column must be a list, all of one length", "inputs", name)
    tensor = plan.inputs[0]
    table = list(zip(*(value[name] for name in names), strict=True))
    return {tensor.name: from_json(table, tensor, lambda path: ["inputs", *(names[j] for j in path[1:2]), *path[:1]])}


def _input_of_columns(value: Any, tensor: TensorPlan) -> Array:
    return from_json(value, tensor, lambda path: ["inputs", tensor.name, *path])


def is_bytes(value: Any) -> bool:
    """Whether a value is TensorFlow Serving's {"b64": ...}."""
    return type(value) is dict and value.keys() == {"b64"}


def pictures_of(rows: list[Any], key: str, plan: VersionPlan) -> list[bytes] | None:
    """The files of rows that are {"b64": ...}, bare or under the input's name; None where the first row is not one.

    Raises wrong_type for a later row that is none, and for what is not base64.
    """
    name = plan.inputs[0].name
    first = rows[0]
    named = type(first) is dict and first.keys() == {name} and is_bytes(first[name])
    if not named and not is_bytes(first):
        return None
    pictures = []
    for index, row in enumerate(rows):
        value: Any = row.get(name) if named and type(row) is dict else row
        if not is_bytes(value):
            refuse("wrong_type", 'expected {"b64": ...} as in the row before', key, index)
        try:
            pictures.append(from_base64(value["b64"]))
        except ValueError:
            refuse("wrong_type", "b64 is not base64", key, index, "b64")
    return pictures


def count_keys(value: Any) -> int:
    """How many keys the objects of a document hold; lists of other things than objects are not looked into."""
    count = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            count += len(item)
            stack.extend(item.values())
        elif type(item) is list and item and type(item[0]) is dict:
            stack.extend(item)
    return count


def refuse(code: str, message: str, *loc: str | int) -> NoReturn:
    """Raise with one located error."""
    sentence = f"{'.'.join(map(str, loc))}: {message}" if loc else message
    raise InferenceError(code, sentence, [Located(loc=list(loc), msg=message)])


def _refuse_features(rows: Iterable[tuple[Path, Any]], known: Iterable[str]) -> NoReturn:
    """Raise unknown_feature (wrong_type for what is no object), naming every missing and unknown key, at most 20."""
    wanted = dict.fromkeys(known)
    code = ""
    errors: list[Located] = []
    for loc, row in rows:
        if type(row) is not dict:
            code = code or "wrong_type"
            errors.append(Located(loc=list(loc), msg=f"expected an object with the keys {', '.join(wanted)}"[:400]))
        else:
            missing = [name for name in wanted if name not in row]
            for name in islice((name for name in row if name not in wanted), MAX_ERRORS):
                code = code or "unknown_feature"
                hint = did_you_mean(name, missing or wanted)
                errors.append(Located(loc=[*loc, name[:80]], msg=f"unknown feature {name[:80]!r}{hint}"))
            for name in missing:
                code = code or "unknown_feature"
                errors.append(Located(loc=[*loc, name], msg=f"feature {name!r} is missing"))
        if len(errors) >= MAX_ERRORS:
            break
    first = errors[0]
    raise InferenceError(code, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", errors[:MAX_ERRORS])


def _depth(value: Any) -> int:
    """How deep the first elements of lists nest."""
    depth = 0
    while type(value) is list:
        depth += 1
        value = value[0] if value else None
    return depth
