"""Makes the demo's two model versions and the reference set; needs scikit-learn and skl2onnx (`make test` has them).

    python -m examples.card_fraud.train

Version 1 is a logistic regression as a first release would be (exported with skl2onnx's default ZipMap tail, which
Signalbox cuts at registration); version 2 a small gradient boosting that also sees what no straight line can.
"""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.card_fraud.generator import COLUMNS, LABELS, fraud_probability, payments

FOLDER = Path(__file__).parent
OPSET = {"": 21, "ai.onnx.ml": 3}


def main() -> None:
    train, test = payments(40_000, np.random.default_rng(1)), payments(20_000, np.random.default_rng(2))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(train.features, train.labels)
    boosted = GradientBoostingClassifier(n_estimators=120, max_depth=3, random_state=0).fit(
        train.features, train.labels
    )
    for number, model in ((1, linear), (2, boosted)):
        options = {} if number == 1 else {id(model): {"zipmap": False}}
        graph = to_onnx(model, train.features[:1], options=options, target_opset=OPSET)
        (FOLDER / f"card_fraud_v{number}.onnx").write_bytes(graph.SerializeToString())
        scores = model.predict_proba(test.features)[:, 1]
        print(f"version {number}: AUC {roc_auc_score(test.labels, scores):.4f} on {len(test.labels)} payments")
    print(f"the truth itself: AUC {roc_auc_score(test.labels, fraud_probability(test.features)):.4f}")
    rows = payments(2_000, np.random.default_rng(3))
    lines = [",".join((*COLUMNS, "target"))]
    for features, label in zip(rows.features, rows.labels, strict=True):
        lines.append(",".join([*(f"{value:g}" for value in features), LABELS[label]]))
    (FOLDER / "reference.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
