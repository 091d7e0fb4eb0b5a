"""DICOM files of known pixels, each with the grey that a screen has to show.

    python -m examples.golden_dicom.make FOLDER

writes NAME.dcm and NAME.png (8 bits, the grey wanted) for every case. The wanted grey is computed here, value by value
and in double precision, from the sentences of PS3.3 C.11.1, C.11.2 and C.7.6.3.1.2: nothing of the product and none of
pydicom's display functions takes part, so that both can be held against it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

Array = np.ndarray[Any, Any]

# Neither square nor a multiple of four, so that swapped axes and wrong strides are seen.
ROWS, COLUMNS = 37, 54
_DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"


@dataclass(frozen=True)
class Golden:
    """One file: `stored` values as they lie in it, `shown` (uint8) as its first view must look on a screen.

    `bits` are those stored, of 8 or 16 allocated. `elements` are set by keyword.
    """

    name: str
    about: str
    stored: Array
    bits: int
    shown: Array
    elements: dict[str, Any] = field(default_factory=dict)

    def file(self) -> bytes:
        """The whole DICOM file, explicit little-endian, with no person in it."""
        dataset = Dataset()
        dataset.SOPClassUID = _DIGITAL_XRAY
        number = sum(byte * 257**at for at, byte in enumerate(self.name.encode())) % 10**30
        dataset.SOPInstanceUID = f"2.25.{number}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
        dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
        dataset.PatientName = dataset.PatientID = ""
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.Rows, dataset.Columns = self.stored.shape
        dataset.BitsAllocated = self.stored.dtype.itemsize * 8
        dataset.BitsStored, dataset.HighBit = self.bits, self.bits - 1
        dataset.PixelRepresentation = int(self.stored.dtype.kind == "i")
        values = self.stored.astype(self.stored.dtype.newbyteorder("<")).tobytes()
        dataset.PixelData = values + b"\0" * (len(values) % 2)
        dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
        for name, value in self.elements.items():
            setattr(dataset, name, value)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        out = BytesIO()
        dcmwrite(out, dataset, enforce_file_format=True)
        return out.getvalue()


def cases() -> list[Golden]:
    """Every file of the set, the same at each call."""
    return [*_plain(), *_windows(), *_modality(), *_tables(), *_polarity()]


def ramp(bits: int, *, signed: bool = False) -> Array:
    """A picture that holds the least and the largest value of so many bits and rises along the rows; its top left
    corner is bright, so that a turned or mirrored picture is seen."""
    share = np.arange(ROWS * COLUMNS, dtype=np.float64).reshape(ROWS, COLUMNS) / (ROWS * COLUMNS - 1)
    share[:6, :9] = 1.0
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.floor(share * (2**bits - 1) + 0.5).astype(np.int64) + low
    letter = "i" if signed else "u"
    made: Array = values.astype(f"{letter}{1 if bits == 8 else 2}")
    return made


def _grey(values: Array, rule: Callable[[float], float]) -> Array:
    """The nearest of 256 greys to `rule` (0 to 1) of each value."""
    levels = {float(value): min(255, max(0, round(255 * rule(float(value))))) for value in np.unique(values)}
    grey: Array = np.vectorize(levels.__getitem__, otypes=[np.uint8])(values.astype(np.float64))
    return grey


def linear(center: float, width: float) -> Callable[[float], float]:
    """C.11.2.1.2.1."""

    def rule(value: float) -> float:
        if value <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if value > center - 0.5 + (width - 1) / 2:
            return 1.0
        return (value - (center - 0.5)) / (width - 1) + 0.5

    return rule


def exact(center: float, width: float) -> Callable[[float], float]:
    """C.11.2.1.3.2."""

    def rule(value: float) -> float:
        if value <= center - width / 2:
            return 0.0
        if value > center + width / 2:
            return 1.0
        return (value - center) / width + 0.5

    return rule


def sigmoid(center: float, width: float) -> Callable[[float], float]:
    """C.11.2.1.3.1."""

    def rule(value: float) -> float:
        steepness = -4 * (value - center) / width
        return 0.0 if steepness > 700 else 1 / (1 + float(np.exp(steepness)))

    return rule


def through(table: list[int], first: int, bits: int) -> Callable[[float], float]:
    """C.11.2.1.1: below the first value mapped its entry, past the last the last one's."""
    return lambda value: table[min(len(table) - 1, max(0, int(value) - first))] / (2**bits - 1)


def _lut(table: list[int], first: int, bits: int, *, vr: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(table) % 65536, first, bits])
    item.add_new("LUTData", vr, table if vr == "US" else np.array(table, "<u2").tobytes())
    return Sequence([item])


def _plain() -> list[Golden]:
    """8 bits need no window; what has more is shown from its 0.5th to its 99.5th percentile."""
    eight, twelve = ramp(8), ramp(12)
    low, high = (float(end) for end in np.percentile(twelve, (0.5, 99.5)))
    stretched = _grey(twelve, lambda value: (value - low) / (high - low))
    return [
        Golden("plain_8", "MONOCHROME2, 8 bits, no window", eight, 8, eight.copy()),
        Golden("no_window_12", "MONOCHROME2, 12 bits, no window", twelve, 12, stretched),
    ]


def _windows() -> list[Golden]:
    found = []
    for bits, center, width in ((8, 120, 90), (12, 1640, 2900), (16, 30_000, 41_000)):
        values = ramp(bits)
        elements = {"WindowCenter": center, "WindowWidth": width}
        wanted = _grey(values, linear(center, width))
        found.append(Golden(f"window_{bits}", f"a window on {bits} bits", values, bits, wanted, elements))
    for name, rule in (("LINEAR_EXACT", exact), ("SIGMOID", sigmoid)):
        values = ramp(12)
        chosen = {"WindowCenter": 1640, "WindowWidth": 2900, "VOILUTFunction": name}
        wanted = _grey(values, rule(1640, 2900))
        found.append(Golden(f"{name.lower()}_12", f"VOI LUT function {name}", values, 12, wanted, chosen))
    for bits in (8, 12, 16):
        signed = ramp(bits, signed=True)
        center, width = -(2 ** (bits - 4)), 2 ** (bits - 1)
        elements = {"WindowCenter": center, "WindowWidth": width}
        wanted = _grey(signed, linear(center, width))
        found.append(Golden(f"signed_{bits}", f"signed values of {bits} bits", signed, bits, wanted, elements))
    values = ramp(12)
    several = {"WindowCenter": [2000, 600, 3000], "WindowWidth": [1500, 400, 200]}
    found.append(
        Golden(
            "windows_12", "three windows: the first one counts", values, 12, _grey(values, linear(2000, 1500)), several
        )
    )
    step = {"WindowCenter": 2048, "WindowWidth": 1}
    wanted = _grey(values, lambda value: float(value > 2047.5))
    found.append(Golden("narrowest_12", "a window of width 1 is a step", values, 12, wanted, step))
    return found


def _modality() -> list[Golden]:
    values = ramp(12)
    whole = {"RescaleSlope": 2, "RescaleIntercept": -1024, "RescaleType": "HU", "WindowCenter": 40, "WindowWidth": 400}
    share = {
        "RescaleSlope": 0.25,
        "RescaleIntercept": -7.5,
        "RescaleType": "US",
        "WindowCenter": 300,
        "WindowWidth": 650,
    }
    falling = {
        "RescaleSlope": -1,
        "RescaleIntercept": 4095,
        "RescaleType": "US",
        "WindowCenter": 900,
        "WindowWidth": 1200,
    }
    wide = {
        "RescaleSlope": 20,
        "RescaleIntercept": 0,
        "RescaleType": "US",
        "WindowCenter": 50_000,
        "WindowWidth": 60_000,
    }
    table = [round(65535 * (entry / 4095) ** 2) for entry in range(4096)]
    looked_up = {"ModalityLUTSequence": _lut(table, 0, 16, vr="OW"), "WindowCenter": 20_000, "WindowWidth": 30_000}
    offset = [4000 - 3 * entry for entry in range(1000)]
    after_first = {"ModalityLUTSequence": _lut(offset, -500, 12), "WindowCenter": 2500, "WindowWidth": 3001}
    signed = ramp(12, signed=True)
    found = [
        Golden(
            "rescale_12",
            "rescale by whole numbers, then a window",
            values,
            12,
            _grey(values * 2.0 - 1024, linear(40, 400)),
            whole,
        ),
        Golden(
            "rescale_share_12", "rescale by a fraction", values, 12, _grey(values * 0.25 - 7.5, linear(300, 650)), share
        ),
        Golden(
            "rescale_falling_12",
            "rescale with a falling slope",
            values,
            12,
            _grey(4095.0 - values, linear(900, 1200)),
            falling,
        ),
        Golden(
            "rescale_wide_12", "rescale past 16 bits", values, 12, _grey(values * 20.0, linear(50_000, 60_000)), wide
        ),
        Golden(
            "modality_lut_12",
            "modality LUT of 16 bits, then a window",
            values,
            12,
            _grey(np.array(table)[values], linear(20_000, 30_000)),
            looked_up,
        ),
        Golden(
            "modality_lut_signed_12",
            "modality LUT of 12 bits that begins below zero",
            signed,
            12,
            _grey(np.array(offset)[np.clip(signed.astype(int) + 500, 0, 999)], linear(2500, 3001)),
            after_first,
        ),
    ]
    for case in found:
        if "ModalityLUTSequence" in case.elements:
            case.elements["ModalityLUTSequence"][0].ModalityLUTType = "US"
    return found


def _tables() -> list[Golden]:
    values = ramp(12)
    curve = [round(65535 * (entry / 4095) ** 0.5) for entry in range(4096)]
    short = [round(255 * entry / 1499) for entry in range(1500)]
    ten = [round(1023 * (1 - entry / 2047)) for entry in range(2048)]
    signed = ramp(12, signed=True)
    both = {"VOILUTSequence": _lut(curve, 0, 16), "WindowCenter": 10, "WindowWidth": 20}
    rescaled = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "RescaleType": "HU",
        "VOILUTSequence": _lut(ten, -1024, 10, vr="OW"),
    }
    return [
        Golden(
            "voi_lut_12",
            "VOI LUT of 16 bits, which counts before the window",
            values,
            12,
            _grey(values, through(curve, 0, 16)),
            both,
        ),
        Golden(
            "voi_lut_8_bits_12",
            "VOI LUT of 8 bits over a part of the values",
            values,
            12,
            _grey(values, through(short, 900, 8)),
            {"VOILUTSequence": _lut(short, 900, 8)},
        ),
        Golden(
            "voi_lut_signed_12",
            "VOI LUT of 10 bits that begins below zero",
            signed,
            12,
            _grey(signed, through(ten, -1024, 10)),
            {"VOILUTSequence": _lut(ten, -1024, 10)},
        ),
        Golden(
            "voi_lut_rescaled_12",
            "VOI LUT after a rescale to values below zero",
            values,
            12,
            _grey(values - 1024.0, through(ten, -1024, 10)),
            rescaled,
        ),
    ]


def _polarity() -> list[Golden]:
    found = []
    for bits, center, width in ((8, 120, 90), (12, 1640, 2900), (16, 30_000, 41_000)):
        values = ramp(bits)
        elements = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": center, "WindowWidth": width}
        wanted = 255 - _grey(values, linear(center, width))
        found.append(Golden(f"monochrome1_{bits}", f"MONOCHROME1, {bits} bits", values, bits, wanted, elements))
    values = ramp(12)
    window = {"WindowCenter": 1640, "WindowWidth": 2900}
    wanted = 255 - _grey(values, linear(1640, 2900))
    curve = [round(65535 * (entry / 4095) ** 0.5) for entry in range(4096)]
    return [
        *found,
        Golden(
            "plain_monochrome1_8",
            "MONOCHROME1, 8 bits, no window",
            ramp(8),
            8,
            255 - ramp(8),
            {"PhotometricInterpretation": "MONOCHROME1"},
        ),
        Golden(
            "monochrome1_inverse_12",
            "MONOCHROME1 with the INVERSE shape, as digital X-ray has them: inverted once",
            values,
            12,
            wanted,
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE", **window},
        ),
        Golden(
            "monochrome2_inverse_12",
            "MONOCHROME2 with the INVERSE shape: inverted",
            values,
            12,
            wanted,
            {"PresentationLUTShape": "INVERSE", **window},
        ),
        Golden(
            "monochrome2_identity_12",
            "MONOCHROME2 with the IDENTITY shape",
            values,
            12,
            255 - wanted,
            {"PresentationLUTShape": "IDENTITY", **window},
        ),
        Golden(
            "monochrome1_voi_lut_12",
            "MONOCHROME1 with a VOI LUT: inverted after it",
            values,
            12,
            255 - _grey(values, through(curve, 0, 16)),
            {"PhotometricInterpretation": "MONOCHROME1", "VOILUTSequence": _lut(curve, 0, 16)},
        ),
    ]


def write(folder: Path) -> list[str]:
    """Write the set; returns the names of its cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        (folder / f"{case.name}.dcm").write_bytes(case.file())
        Image.fromarray(case.shown).save(folder / f"{case.name}.png")
    return [case.name for case in cases()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write DICOM files of known pixels.")
    parser.add_argument("folder", type=Path)
    names = write(parser.parse_args().folder)
    print(f"{len(names)} files: {', '.join(names)}")


if __name__ == "__main__":
    main()
