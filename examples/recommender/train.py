"""Makes the recommender's two versions and its reference set; needs what the product needs (numpy, onnx).

    python -m examples.recommender.train

A product's score is a low-rank matrix factorisation: the visitor's columns are mapped to `rank` factors, and each
product has a weight for every factor and a popularity. Fitted by the likelihood of what was bought (softmax over all
products), with Adam. Version 1 has two factors, version 2 as many as the truth can use.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from examples.recommender.generator import COLUMNS, ITEMS, purchase_probability, visits

FOLDER = Path(__file__).parent
RANKS = {1: 2, 2: 7}
EPOCHS, BATCH, RATE = 12, 256, 0.02
OPSET = 17


@dataclass(frozen=True, slots=True)
class Factors:
    """`mean`, `deviation` of log(1 + column): [9]. `visitor`: [9, rank]. `product`: [rank, 24]. `popularity`: [24]."""

    mean: np.ndarray
    deviation: np.ndarray
    visitor: np.ndarray
    product: np.ndarray
    popularity: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """float64 [n, 24]: the higher, the likelier bought."""
        table = (np.log1p(features.astype(np.float64)) - self.mean) / self.deviation
        return np.asarray(table @ self.visitor @ self.product + self.popularity)


def fit(features: np.ndarray, bought: np.ndarray, rank: int, rng: np.random.Generator) -> Factors:
    """Maximum likelihood by Adam (Kingma and Ba 2015) with a falling rate."""
    logs = np.log1p(features.astype(np.float64))
    mean, deviation = logs.mean(axis=0), logs.std(axis=0)
    table = (logs - mean) / deviation
    weights = [
        rng.normal(0, 0.3, (len(COLUMNS), rank)),
        rng.normal(0, 0.3, (rank, len(ITEMS))),
        np.zeros(len(ITEMS)),
    ]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    steps = EPOCHS * (len(table) // BATCH)
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(table))[: len(table) // BATCH * BATCH]
        for index in order.reshape(-1, BATCH):
            step += 1
            rate = RATE * (1 - step / (steps + 1))
            for weight, (first, second), slope in zip(
                weights, moments, _slopes(table[index], bought[index], *weights), strict=True
            ):
                first += 0.1 * (slope - first)
                second += 0.001 * (slope**2 - second)
                weight -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return Factors(mean, deviation, *weights)


def _slopes(
    x: np.ndarray, bought: np.ndarray, visitor: np.ndarray, product: np.ndarray, popularity: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient of the mean negative log-likelihood."""
    factors = x @ visitor
    scores = factors @ product + popularity
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(x)), bought] -= 1
    shares /= len(x)
    return x.T @ (shares @ product.T), factors.T @ shares, shares.sum(axis=0)


def graph_of(factors: Factors) -> onnx.ModelProto:
    """`visit` [n, 9] to `scores` [n, 24], in single precision."""
    constants = {
        "one": np.ones(1),
        "mean": factors.mean,
        "deviation": factors.deviation,
        "visitor": factors.visitor,
        "product": factors.product,
        "popularity": factors.popularity,
    }
    chain = (
        ("Add", "visit", "one", "shifted"),
        ("Log", "shifted", None, "logs"),
        ("Sub", "logs", "mean", "centred"),
        ("Div", "centred", "deviation", "table"),
        ("MatMul", "table", "visitor", "factors"),
        ("MatMul", "factors", "product", "liking"),
        ("Add", "liking", "popularity", "scores"),
    )
    graph = helper.make_graph(
        [helper.make_node(kind, [left, right] if right else [left], [out]) for kind, left, right, out in chain],
        "recommender",
        [helper.make_tensor_value_info("visit", TensorProto.FLOAT, ["n", len(COLUMNS)])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(ITEMS)])],
        [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def hit_rate(scores: np.ndarray, bought: np.ndarray, most: int) -> float:
    """How often what was bought is among the `most` highest scores."""
    first = np.argsort(-scores, axis=1)[:, :most]
    return float((first == bought[:, None]).any(axis=1).mean())


def main() -> None:
    train, test = visits(40_000, np.random.default_rng(1)), visits(20_000, np.random.default_rng(2))
    counts = np.bincount(train.bought, minlength=len(ITEMS))
    rankings = {"the most bought products": np.tile(counts, (len(test.bought), 1))}
    for number, rank in RANKS.items():
        factors = fit(train.features, train.bought, rank, np.random.default_rng(3))
        (FOLDER / f"recommender_v{number}.onnx").write_bytes(graph_of(factors).SerializeToString())
        rankings[f"version {number}"] = factors.scores(test.features)
    rankings["the truth itself"] = purchase_probability(test.features)
    for name, scores in rankings.items():
        rates = " | ".join(f"{hit_rate(scores, test.bought, most):.1%}" for most in (1, 5, 10))
        print(f"| {name} | {rates} |")
    rows = visits(2_000, np.random.default_rng(4))
    lines = [",".join((*COLUMNS, "target"))]
    for features, index in zip(rows.features, rows.bought, strict=True):
        lines.append(",".join([*(f"{value:g}" for value in features), ITEMS[index]]))
    (FOLDER / "reference.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
