import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.chest_xray import measure
from examples.chest_xray.generator import DARKENING, FOLDER, LABELS, MODEL_FILE, PREVALENCE, fit, pictures, png

REAL = Path(__file__).parents[3] / "shared" / "data" / "xray" / "pneumoniamnist.npz"
VERSIONS = (1, 2)


def on_record(number: int) -> dict[str, float]:
    figures: dict[str, float] = json.loads((FOLDER / f"performance_v{number}.json").read_text())["labels"]["pneumonia"]
    return figures


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    if not REAL.is_file():
        pytest.skip("the shared data folder is not here")
    with np.load(REAL, allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}


@pytest.mark.unit
def test_the_files_are_small() -> None:
    for number in VERSIONS:
        assert (FOLDER / f"chest_xray_v{number}.onnx").stat().st_size < 300_000
    assert MODEL_FILE.stat().st_size < 200_000


@pytest.mark.unit
def test_the_same_seed_draws_the_same_pictures() -> None:
    first, again = (pictures(20, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first.pixels, again.pixels) and np.array_equal(first.labels, again.labels)
    assert first.pixels.shape == (20, 28, 28) and first.pixels.dtype == np.uint8


@pytest.mark.unit
def test_pneumonia_is_as_frequent_as_stated() -> None:
    share = pictures(4_000, np.random.default_rng(2)).labels.mean()
    assert abs(share - PREVALENCE) < 5 * np.sqrt(PREVALENCE * (1 - PREVALENCE) / 4_000)


@pytest.mark.unit
def test_drift_darkens_the_pictures_and_leaves_their_contrast() -> None:
    plain, dark = (pictures(500, np.random.default_rng(3), drift).pixels.astype(float) for drift in (0.0, 1.0))
    assert plain.mean() - dark.mean() == pytest.approx(DARKENING, abs=2)
    assert dark.std(axis=(1, 2)).mean() == pytest.approx(plain.std(axis=(1, 2)).mean(), rel=0.05)


@pytest.mark.unit
def test_a_picture_survives_as_png() -> None:
    pixels = pictures(1, np.random.default_rng(4)).pixels[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


@pytest.mark.unit
def test_a_fitted_class_has_the_mean_and_the_spread_of_its_pictures() -> None:
    rng = np.random.default_rng(5)
    given = np.clip(120 + rng.normal(0, 20, (400, 1, 1)) + rng.normal(0, 1, (400, 28, 28)), 0, 255).astype(np.uint8)
    model = fit(given, 3)
    drawn = model.mean + rng.standard_normal((4_000, 3)) @ model.components
    assert drawn.mean() == pytest.approx(given.mean(), abs=1.5)
    assert drawn.mean(axis=1).std() == pytest.approx(given.mean(axis=(1, 2)).std(), rel=0.1)


@pytest.mark.unit
@pytest.mark.parametrize("number", VERSIONS)
def test_the_card_states_the_figures_on_synthetic_pictures(number: int) -> None:
    found = measure.on_synthetic(number, on_record(number)["threshold"])
    card = measure.CARD.read_text()
    for name in ("accuracy", "sensitivity", "specificity"):
        line = next(line for line in card.splitlines() if line.startswith(f"| {name} on synthetic"))
        said = float(line.split("|")[1 + number].split("%")[0]) / 100
        # A last bit of another machine's arithmetic may move a picture over the threshold.
        assert getattr(found, name).value == pytest.approx(said, abs=0.003), name


@pytest.mark.unit
def test_a_share_has_wilsons_interval() -> None:
    # Newcombe 1998, table I: 81 of 263.
    low, high = measure.Share(81, 263).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.shared
@pytest.mark.parametrize("number", VERSIONS)
def test_the_real_test_split_gives_the_figures_on_record(number: int, real: dict[str, np.ndarray]) -> None:
    kept = on_record(number)
    truth = real["test_labels"].ravel()
    found = measure.measured(measure.scores(number, real["test_images"]), truth, kept["threshold"])
    assert (found.sensitivity.n, found.specificity.n) == (kept["positives"], kept["negatives"])
    assert found.sensitivity.value == pytest.approx(kept["sensitivity"], abs=0.005)
    assert found.specificity.value == pytest.approx(kept["specificity"], abs=0.005)
    lines = [line for line in measure.CARD.read_text().splitlines() if line.startswith("| test accuracy")]
    assert float(lines[0].split("|")[1 + number].split("%")[0]) / 100 == pytest.approx(found.accuracy.value, abs=0.005)


@pytest.mark.shared
@pytest.mark.parametrize("number", VERSIONS)
def test_the_threshold_was_chosen_on_the_validation_split(number: int, real: dict[str, np.ndarray]) -> None:
    found = measure.scores(number, real["val_images"])
    assert measure.best_threshold(found, real["val_labels"].ravel()) == on_record(number)["threshold"]


@pytest.mark.shared
def test_no_drawn_picture_is_one_of_the_real_ones(real: dict[str, np.ndarray]) -> None:
    known = np.concatenate([real[f"{name}_images"] for name in ("train", "val", "test")]).reshape(-1, 784)
    apart = []
    for one in pictures(40, np.random.default_rng(6)).pixels.reshape(-1, 784):
        apart.append(np.abs(known.astype(np.int16) - one.astype(np.int16)).mean(axis=1).min())
    # Grey levels a pixel; copies would be 0, and re-encoded ones near 1.
    assert min(apart) > 4, LABELS
