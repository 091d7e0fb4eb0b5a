"""What a DICOM file may say of how it was made and of whom without saying who: known terms, and the age."""

import re

from inference.runtime.pixels import Acquisition

# Ages from here on are one: the sum class of the HIPAA safe harbour.
OLDEST = 90


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A code string could hold a name as well: only terms that are known stay.
TERMS = {
    "Modality": _words("CR DX DR RG RF XA MG IO PX CT MR US NM PT OT SC ES OP XC"),
    "BodyPartExamined": _words(
        "CHEST THORAX LUNG HEART RIB RIBS STERNUM CLAVICLE ABDOMEN PELVIS HIP SPINE CSPINE TSPINE LSPINE SSPINE COCCYX "
        "NECK HEAD SKULL FACE JAW TEETH ORBIT SINUS NOSE EAR EYE BRAIN SHOULDER SCAPULA ARM HUMERUS ELBOW FOREARM "
        "WRIST HAND FINGER THUMB LEG FEMUR THIGH KNEE PATELLA CALF TIBIA FIBULA ANKLE FOOT HEEL TOE EXTREMITY BREAST "
        "LIVER KIDNEY BLADDER PROSTATE UTERUS THYROID AORTA WHOLEBODY"
    )
    | {"WHOLE BODY"},
    "ViewPosition": _words("PA AP LL RL LLD RLD RLO LLO LAT LATERAL OBL AXIAL TAN CC MLO ML LM XCCL"),
    "PatientSex": frozenset("MFO"),
    "Laterality": frozenset("LRUB"),
    "ImageLaterality": frozenset("LRUB"),
    "VOILUTFunction": frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"}),
    "PresentationLUTShape": frozenset({"IDENTITY", "INVERSE"}),
    "PresentationIntentType": frozenset({"FOR PRESENTATION", "FOR PROCESSING"}),
    "PixelIntensityRelationship": frozenset({"LIN", "LOG", "DISP"}),
    "BurnedInAnnotation": frozenset({"YES", "NO"}),
    "LossyImageCompression": frozenset({"00", "01"}),
}


def known_age(text: str) -> str:
    """PS3.5's age string, with everything above 89 years as one; "" where it is no age."""
    found = re.fullmatch(r"\s*([0-9]{1,3})([DWMY]?)\s*", text)
    if found is None:
        return ""
    count, unit = int(found[1]), found[2] or "Y"
    years = count / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[unit]
    return f"{OLDEST:03d}Y" if years >= OLDEST else f"{count:03d}{unit}"


def known_tags(made: Acquisition) -> dict[str, str]:
    """Modality, body part, view, sex and age in decades, as far as they are known terms: what a log may keep."""
    said = {
        "modality": (made.modality, "Modality"),
        "body_part": (made.body_part, "BodyPartExamined"),
        "view": (made.view, "ViewPosition"),
        "sex": (made.sex, "PatientSex"),
    }
    tags = {name: value for name, (value, keyword) in said.items() if value in TERMS[keyword]}
    age = known_age(made.age)
    if age:
        years = int(age[:3]) if age.endswith("Y") else 0 if age[-1] in "DW" else int(age[:3]) // 12
        decade = years // 10 * 10
        tags["age"] = f"{OLDEST} and more" if years >= OLDEST else f"{decade} to {decade + 9}"
    return tags
