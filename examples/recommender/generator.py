"""Made-up visits to a shop with a known truth: what each visitor looked at lately, and which product was then bought.

No real person or shop is in it. The chance that a product is bought is a function of the columns alone
(`purchase_probability`), so that a ranking's hit rate and a drift's cause can be checked against what is true.
"""

from dataclasses import dataclass

import numpy as np

CATEGORIES = ("kitchen", "garden", "books", "sport", "audio", "children")
# Product, category and price in euros.
PRODUCTS = (
    ("espresso-machine", "kitchen", 289.0),
    ("chef-knife", "kitchen", 64.0),
    ("cast-iron-pan", "kitchen", 39.0),
    ("spice-set", "kitchen", 14.0),
    ("lawn-mower", "garden", 319.0),
    ("hedge-shears", "garden", 47.0),
    ("watering-can", "garden", 18.0),
    ("tomato-seeds", "garden", 4.0),
    ("art-atlas", "books", 79.0),
    ("cookbook", "books", 32.0),
    ("crime-novel", "books", 12.0),
    ("pocket-diary", "books", 7.0),
    ("road-bike", "sport", 890.0),
    ("running-shoes", "sport", 119.0),
    ("yoga-mat", "sport", 29.0),
    ("water-bottle", "sport", 11.0),
    ("floor-speakers", "audio", 640.0),
    ("headphones", "audio", 149.0),
    ("earphones", "audio", 35.0),
    ("audio-cable", "audio", 9.0),
    ("pram", "children", 429.0),
    ("wooden-railway", "children", 58.0),
    ("picture-book", "children", 13.0),
    ("crayons", "children", 6.0),
)
ITEMS = tuple(name for name, _, _ in PRODUCTS)
COLUMNS = (*(f"views_{category}" for category in CATEGORIES), "mean_price_eur", "days_since_order", "basket_eur")
# What full drift moves: before the holidays visitors look for children's things and at dearer ones.
SHIFTED = ("views_children", "mean_price_eur")

_CATEGORY = np.array([CATEGORIES.index(category) for _, category, _ in PRODUCTS])
_LOG_PRICE = np.log1p(np.array([price for _, _, price in PRODUCTS]))
# How much a product is liked beside all that: the first of a category is a luxury, the second its best-seller.
_APPEAL = np.tile([0.3, 0.9, 0.4, 0.0], len(CATEGORIES))


@dataclass(frozen=True, slots=True)
class Visits:
    """`features`: float32 [n, 9] in the order of COLUMNS. `bought`: int64 [n], the index in ITEMS."""

    features: np.ndarray
    bought: np.ndarray


def purchase_probability(features: np.ndarray) -> np.ndarray:
    """The true chance of each product to be the one bought: float64 [n, 24] from [n, 9], rows add up to 1."""
    table = features.astype(np.float64)
    views, mean_price = np.log1p(table[:, : len(CATEGORIES)]), np.log1p(table[:, len(CATEGORIES)])
    utility = 1.7 * views[:, _CATEGORY] - 0.9 * (_LOG_PRICE[None] - mean_price[:, None]) ** 2 + _APPEAL
    raised = np.exp(utility - utility.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def visits(n: int, rng: np.random.Generator, drift: float = 0.0) -> Visits:
    """`n` visits and what was bought. `drift` from 0 (as in training) to 1 moves the columns of SHIFTED."""
    taste = rng.dirichlet(np.full(len(CATEGORIES), 0.6), n)
    views = taste * rng.lognormal(2.6, 0.6, n)[:, None]
    # Nobody is shown one category alone.
    views += rng.exponential(0.4, views.shape)
    views[:, CATEGORIES.index("children")] *= 1 + 3 * drift
    basket = np.where(rng.random(n) < 0.4, rng.lognormal(3.2, 0.8, n), 0.0)
    features = np.column_stack(
        [
            np.round(views, 2),
            np.round(rng.lognormal(3.6 + 0.9 * drift, 0.8, n), 2),
            np.floor(rng.exponential(35, n)),
            np.round(basket, 2),
        ]
    ).astype(np.float32)
    edges = purchase_probability(features).cumsum(axis=1)
    bought = (rng.random(n)[:, None] > edges).sum(axis=1).clip(0, len(ITEMS) - 1)
    return Visits(features, bought.astype(np.int64))
