"""Occlusion maps of models whose relevant region is known, and the sanity checks that a map must pass."""

import numpy as np
import pytest

from inference.runtime.explain import HeatMap, Predict, grid_for, occlusion, overlay

pytestmark = pytest.mark.unit

SIDE = 56


def picture(seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, SIDE, SIDE), np.float32)


def bright_square() -> np.ndarray:
    """Dark, but for rows 8 to 16 and columns 36 to 44."""
    made = np.full((1, SIDE, SIDE), 0.1, np.float32)
    made[:, 8:16, 36:44] = 1.0
    return made


def looks_at(rows: slice, columns: slice) -> Predict:
    """Two scores: how bright a region is, and a constant."""

    def predict(batch: np.ndarray) -> np.ndarray:
        bright = batch[:, 0, rows, columns].mean(axis=(1, 2))
        return np.stack([bright, np.full(len(batch), 0.3)], axis=1)

    return predict


def test_the_region_that_a_score_rests_on_is_lit_and_nothing_else() -> None:
    maps, scores = occlusion(bright_square(), looks_at(slice(8, 16), slice(36, 44)), grid=14)
    assert maps.shape == (2, 14, 14)
    assert maps.dtype == np.float32
    assert scores == pytest.approx([1.0, 0.3])
    lit = np.argwhere(maps[0] > 0)
    # Cells of 4 pixels: the region is rows 2 and 3, columns 9 and 10; the square reaches one cell further.
    assert lit.min(axis=0).tolist() == [1, 8]
    assert lit.max(axis=0).tolist() == [4, 11]
    assert sorted(map(tuple, np.argwhere(maps[0] == maps[0].max()).tolist())) == [(2, 9), (2, 10), (3, 9), (3, 10)]
    assert 0.2 < maps[0].max() <= 1


def test_a_constant_score_lights_nothing() -> None:
    maps, _ = occlusion(picture(), looks_at(slice(8, 16), slice(36, 44)), grid=14)
    assert not maps[1].any()
    assert not np.asarray(overlay(maps[1], (SIDE, SIDE), (0, 0, SIDE, SIDE)))[..., 3].any()


def test_a_score_that_rises_when_a_place_is_covered_has_no_heat_there() -> None:
    dark = 1.0 - bright_square()
    maps, _ = occlusion(dark, looks_at(slice(8, 16), slice(36, 44)), grid=14)
    assert not maps[0].any()


def test_heat_moves_with_the_region() -> None:
    for top, left in ((0, 0), (0, 48), (48, 0), (48, 48), (24, 24)):
        made = np.full((1, SIDE, SIDE), 0.1, np.float32)
        made[:, top : top + 8, left : left + 8] = 1.0
        maps, _ = occlusion(made, looks_at(slice(top, top + 8), slice(left, left + 8)), grid=14)
        hottest = np.unravel_index(maps[0].argmax(), maps[0].shape)
        assert (hottest[0] - top // 4, hottest[1] - left // 4) in {(0, 0), (0, 1), (1, 0), (1, 1)}


def linear_model(seed: int) -> Predict:
    """A softmax over three labels of smooth random weights."""
    coarse = np.random.default_rng(seed).normal(size=(3, 7, 7))
    weights = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2) / 40

    def predict(batch: np.ndarray) -> np.ndarray:
        logits = np.einsum("nhw,lhw->nl", batch[:, 0].astype(np.float64), weights)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
        return scores

    return predict


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values.ravel())).astype(float)


def test_a_model_with_other_weights_gets_another_map() -> None:
    """Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018: a map that outlives its model explains nothing."""
    shown = picture(3)
    trained, _ = occlusion(shown, linear_model(0), grid=14)
    again, _ = occlusion(shown, linear_model(0), grid=14)
    np.testing.assert_array_equal(trained, again)
    likeness = []
    for seed in range(1, 9):
        other, _ = occlusion(shown, linear_model(seed), grid=14)
        likeness.append(abs(float(np.corrcoef(ranks(trained[0]), ranks(other[0]))[0, 1])))
    assert float(np.mean(likeness)) < 0.3


def test_batches_change_nothing() -> None:
    one, _ = occlusion(picture(1, 3), looks_at(slice(0, 9), slice(0, 9)), grid=7, batch=1)
    many, _ = occlusion(picture(1, 3), looks_at(slice(0, 9), slice(0, 9)), grid=7, batch=64)
    np.testing.assert_allclose(one, many, atol=1e-7)


def test_a_model_is_asked_as_often_as_is_said_and_its_failure_passes_through() -> None:
    asked: list[int] = []

    def predict(batch: np.ndarray) -> np.ndarray:
        asked.append(len(batch))
        if len(asked) == 3:
            raise TimeoutError("enough")
        return np.ones((len(batch), 1))

    with pytest.raises(TimeoutError):
        occlusion(picture(), predict, grid=7, batch=8)
    assert asked == [1, 8, 8]
    asked.clear()
    asked += [0] * 9
    occlusion(picture(), predict, grid=7, batch=8)
    assert sum(asked) == 1 + 8 * 8


def test_tensors_whose_sides_are_no_multiple_of_the_grid_are_covered_whole() -> None:
    odd = np.ones((1, 29, 45), np.float32)
    odd[:, :, ::2] = 0.5
    seen = np.zeros((29, 45), bool)

    def predict(batch: np.ndarray) -> np.ndarray:
        if len(batch) > 1:
            np.logical_or(seen, (batch != odd).any(axis=(0, 1)), out=seen)
        return np.full((len(batch), 1), 0.5)

    occlusion(odd, predict, grid=14)
    assert seen.all()


@pytest.mark.parametrize(
    ("cost_s", "size", "grid"),
    [
        (0.0, (224, 224), 14),
        (0.05, (224, 224), 14),
        (0.1, (224, 224), 10),
        (0.3, (224, 224), 7),
        (9.0, (224, 224), 7),
        (0.001, (28, 28), 14),
        (0.001, (5, 28), 5),
    ],
)
def test_the_grid_follows_what_a_run_costs(cost_s: float, size: tuple[int, int], grid: int) -> None:
    assert grid_for(cost_s, *size) == grid


def test_a_stored_map_is_found_by_its_label() -> None:
    values = np.arange(2 * 4, dtype="<f4").reshape(2, 2, 2)
    stored = HeatMap(labels=["Mass", "Nodule"], scores=[0.8, 0.1], grid=2, values=values.tobytes())
    np.testing.assert_array_equal(stored.of("Nodule"), values[1])
    with pytest.raises(ValueError, match="list"):
        stored.of("Hernia")


def test_an_overlay_lies_where_the_model_looked() -> None:
    heat = np.zeros((2, 2), np.float32)
    heat[0, 1] = 0.5
    alpha = np.asarray(overlay(heat, (300, 200), (50, 0, 250, 200)))[..., 3]
    assert alpha.shape == (200, 300)
    assert not alpha[:, :50].any()
    assert not alpha[:, 250:].any()
    hottest = np.unravel_index(alpha.argmax(), alpha.shape)
    assert hottest[0] < 100 < 150 < hottest[1]
    assert alpha.max() == 200


def test_an_overlay_of_a_large_picture_is_small_and_keeps_its_shape() -> None:
    drawn = overlay(np.ones((7, 7), np.float32), (4000, 2000), (0, 0, 4000, 2000))
    assert (drawn.mode, drawn.size) == ("RGBA", (512, 256))
    canvas = overlay(np.ones((7, 7), np.float32), (40, 80), (-20, -40, 60, 120))
    assert np.asarray(canvas)[..., 3].min() == 200


def test_a_score_that_no_place_carries_shows_next_to_nothing() -> None:
    faint = np.asarray(overlay(np.full((7, 7), 0.004, np.float32), (50, 50), (0, 0, 50, 50)))[..., 3]
    assert faint.max() <= 8
