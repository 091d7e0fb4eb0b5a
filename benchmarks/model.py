"""The model of the benchmarks: a gradient boosting of 100 trees on 30 features, made on the fly."""

import tempfile
from pathlib import Path

import numpy as np

FEATURES = 30
TREES = 100
COLUMNS = tuple(f"f{index:02d}" for index in range(FEATURES))
_OPSET = {"": 21, "ai.onnx.ml": 3}


def model_file(number: int) -> Path:
    """The ONNX file of version `number`, trained on its own data; kept in the temporary folder for the next run."""
    import sklearn  # type: ignore[import-untyped]  # no stubs are installed
    from skl2onnx import to_onnx  # type: ignore[import-untyped]
    from sklearn.ensemble import GradientBoostingClassifier  # type: ignore[import-untyped]

    path = Path(tempfile.gettempdir()) / f"signalbox-bench-{sklearn.__version__}-{number}.onnx"
    if path.exists():
        return path
    rng = np.random.default_rng(number)
    rows = rng.normal(size=(4_000, FEATURES)).astype(np.float32)
    labels = (rows[:, :5].sum(axis=1) + rng.normal(size=len(rows)) > 0).astype(np.int64)
    model = GradientBoostingClassifier(n_estimators=TREES, max_depth=3, random_state=number).fit(rows, labels)
    graph = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}, target_opset=_OPSET)
    draft = path.with_suffix(".draft")
    draft.write_bytes(graph.SerializeToString())
    draft.replace(path)
    return path


def row() -> list[float]:
    """One row, as a caller would send it: numbers of a few digits."""
    return [round(float(value), 3) for value in np.random.default_rng(7).normal(size=FEATURES)]
