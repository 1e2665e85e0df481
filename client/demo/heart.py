"""The UCI heart-disease data of four hospitals, as float32 features (see client/data/README.md).

Features: six measurements, scaled by fixed constants that every hospital knows beforehand (so that
no statistics of patients travel), and seven one-hot attributes in which "missing" is a category of
its own. A label is 1 if the diagnosis is any degree of disease.

Units: features (patients, FEATURES) float32; labels (patients,) int64.
Errors: `SteelyardError("data_columns" | "data_value")` for a file that is not such a table.
"""

import csv
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import inf, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelyard.chain.errors import SteelyardError

HOSPITALS = ("Cleveland", "Hungary", "VA Long Beach", "Switzerland")
TEST_SHARE = 0.3

# Typical value and spread of a measurement, from practice; a missing one counts as typical.
MEASUREMENTS: Mapping[str, tuple[float, float]] = {
    "age": (54.0, 9.0),
    "trestbps": (132.0, 18.0),
    "chol": (200.0, 110.0),
    "thalch": (138.0, 26.0),
    "oldpeak": (0.9, 1.1),
    "ca": (0.7, 0.9),
}
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "sex": ("Male", "Female"),
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "fbs": ("TRUE", "FALSE", ""),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy", ""),
    "exang": ("TRUE", "FALSE", ""),
    "slope": ("upsloping", "flat", "downsloping", ""),
    "thal": ("normal", "fixed defect", "reversable defect", ""),
}
FEATURES = len(MEASUREMENTS) + sum(len(values) for values in ATTRIBUTES.values())
DIAGNOSES = ("0", "1", "2", "3", "4")
COLUMNS = ("dataset", *MEASUREMENTS, *ATTRIBUTES, "num")

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Patients:
    """Features (patients, FEATURES) float32 and labels (patients,) int64."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def read_rows(path: Path | None = None) -> list[Row]:
    """Return the rows of `path`, or of the table that ships with the package."""
    source = files("steelyard.client") / "data" / "heart_disease_uci.csv" if path is None else path
    reader = csv.DictReader(io.StringIO(source.read_text(encoding="utf-8"), newline=""))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise SteelyardError("data_columns", f"{source} has no column {', '.join(missing)}")
    return list(reader)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write one hospital's own rows, in the columns that `read_rows` wants."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def split_rows(rows: Iterable[Row], seed: int) -> dict[str, tuple[list[Row], list[Row]]]:
    """Return (training, test) rows of each hospital; the split depends on `seed` only."""
    by_hospital: dict[str, list[Row]] = {name: [] for name in HOSPITALS}
    for row in rows:
        if row["dataset"] not in by_hospital:
            raise SteelyardError(
                "data_value", f"dataset is {row['dataset']!r}, not one of {HOSPITALS}"
            )
        by_hospital[row["dataset"]].append(row)
    parts = {}
    for name, own in by_hospital.items():
        random.Random(f"{seed} {name}").shuffle(own)  # noqa: S311 - a repeatable split, not a secret
        cut = round(len(own) * TEST_SHARE)
        parts[name] = (own[cut:], own[:cut])
    return parts


def encode_rows(rows: Sequence[Row]) -> Patients:
    """Return features and labels of `rows`."""
    features = np.array([_encode_row(row) for row in rows], np.float32).reshape(-1, FEATURES)
    labels = np.array([_encode_label(row["num"]) for row in rows], np.int64)
    return Patients(features, labels)


def _encode_label(text: str | None) -> bool:
    """Whether a diagnosis, 0 to 4, is any degree of disease."""
    if text not in DIAGNOSES:
        raise SteelyardError("data_value", f"num is {text!r}, not one of {DIAGNOSES}")
    return text != "0"


def _encode_row(row: Row) -> list[float]:
    values = []
    for name, (typical, spread) in MEASUREMENTS.items():
        text = row[name]
        try:
            value = float(text) if text else typical
        except ValueError:
            value = inf
        if not isfinite(value):
            raise SteelyardError("data_value", f"{name} is {text!r}, not a number")
        values.append((value - typical) / spread)
    for name, categories in ATTRIBUTES.items():
        if row[name] not in categories:
            raise SteelyardError("data_value", f"{name} is {row[name]!r}, not one of {categories}")
        values += [float(row[name] == category) for category in categories]
    return values
