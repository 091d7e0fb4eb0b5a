"""Made-up card payments with a known truth: what the demo sends, and what really happened to each payment.

No real person or payment is in it. The chance of fraud is a function of the features alone (`fraud_probability`), so
that a model's accuracy and a drift's cause can be checked against what is true.
"""

from dataclasses import dataclass

import numpy as np

COLUMNS = (
    "amount_eur",
    "hour",
    "distance_km",
    "merchant_risk",
    "card_present",
    "country_mismatch",
    "new_device",
    "account_age_days",
    "payments_24h",
    "mean_amount_30d",
    "minutes_since_last",
    "declined_7d",
)
LABELS = ("legitimate", "fraud")
# What full drift moves.
SHIFTED = ("amount_eur", "hour", "distance_km", "card_present", "new_device")


@dataclass(frozen=True, slots=True)
class Payments:
    """`features`: float32 [n, 12] in the order of COLUMNS. `labels`: int64 [n], 1 is fraud."""

    features: np.ndarray
    labels: np.ndarray


def fraud_probability(features: np.ndarray) -> np.ndarray:
    """The true chance of fraud of each payment: float64 [n] from [n, 12]."""
    column = dict(zip(COLUMNS, features.astype(np.float64).T, strict=True))
    ratio = np.log1p(column["amount_eur"]) - np.log1p(column["mean_amount_30d"])
    night = ((column["hour"] < 6) | (column["hour"] >= 23)).astype(np.float64)
    score = (
        -5.4
        + 1.7 * np.clip(ratio, -2, 4)
        + 1.2 * night
        + 0.45 * np.log1p(column["distance_km"] / 50)
        + 4.0 * column["merchant_risk"]
        - 1.2 * column["card_present"]
        + 1.5 * column["country_mismatch"]
        + 1.0 * column["new_device"]
        - 0.35 * np.log1p(column["account_age_days"] / 90)
        + 0.22 * np.clip(column["payments_24h"] - 3, 0, 12)
        + 0.7 * column["declined_7d"]
        # A stolen card is tried in small steps: something that no straight line through the features sees.
        + 5.0 * ((column["minutes_since_last"] < 25) & (column["amount_eur"] < 14)).astype(np.float64)
        + 3.0 * column["new_device"] * (column["distance_km"] > 25)
    )
    return np.asarray(1 / (1 + np.exp(-score)))


def payments(n: int, rng: np.random.Generator, drift: float = 0.0) -> Payments:
    """`n` payments and their truth. `drift` from 0 (as in training) to 1 moves the columns of SHIFTED."""
    hours = np.where(
        rng.random(n) < 0.06 + 0.25 * drift, rng.integers(0, 6, n), np.clip(rng.normal(14.5, 4.2, n), 0, 23.99)
    )
    mean_amount = rng.lognormal(3.4, 0.7, n)
    features = np.column_stack(
        [
            np.round(mean_amount * rng.lognormal(-0.15 + 0.9 * drift, 0.75, n), 2),
            np.floor(hours),
            np.round(rng.exponential(18 + 60 * drift, n), 1),
            np.round(rng.beta(1.6, 7.0, n), 3),
            rng.random(n) < 0.62 - 0.3 * drift,
            rng.random(n) < 0.05,
            rng.random(n) < 0.08 + 0.22 * drift,
            np.floor(rng.gamma(2.0, 450, n)),
            rng.poisson(1.7, n),
            np.round(mean_amount, 2),
            np.round(rng.exponential(340, n), 1),
            rng.poisson(0.12, n),
        ]
    ).astype(np.float32)
    return Payments(features, (rng.random(n) < fraud_probability(features)).astype(np.int64))
