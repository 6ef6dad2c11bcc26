"""A bundle's card: what the weights are, what they are for, and how to use them.

JSON, read without torch, so that every process can say which model this node serves.

**Identity.** `BundleCard.sha256` is the SHA-256 of the card's canonical JSON (sorted keys, no
spaces, UTF-8) without the member ``created``. The card holds the weights' own SHA-256, so another
weight, threshold, temperature or sentence is another model, while packing the same bundle twice,
on another day or with another version of a library, is not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from pe_triage.domain import (
    EXAM_LABELS,
    IMAGE_LABEL,
    INTENDED_USE_WORDS,
    IntendedUse,
    ModelIdentity,
)
from pe_triage.errors import BundleError
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.spec import ModelSpec

FORMAT: Final = "pe-triage-bundle/1"
CARD_NAME: Final = "card.json"
WEIGHTS_NAME: Final = "weights.safetensors"
RESIZE: Final = "pad-to-square-with-air, area-mean/1"
"""Name of the resizing in `pe_triage.imaging.windows`; a changed one gets another name, so that
no bundle is served on images prepared otherwise than it was trained on."""
LUNGS: Final = "threshold -400 HU, border removed, dilation 4 mm, closing 20 mm/1"
"""Name of the recipe in `pe_triage.imaging.lungs`, for bundles whose spec uses it."""

_MAX_CARD_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleCard:
    """What stands in ``card.json``.

    Attributes
    ----------
    thresholds
        Label to threshold in (0, 1), for all of `EXAM_LABELS`, `IMAGE_LABEL` and ``"pe"``.
    temperatures
        Label to positive temperature that divides its logit; absent ones are 1.
    calibrated
        Whether the probabilities were calibrated on held-out data.
    weights_sha256
        Hex digest of the file of weights.
    reference
        Digest and making of the file by which exams unlike the calibration's are told
        (`pe_triage.model.reference`); None where the bundle has none.
    created
        When and with which versions; no part of the identity.
    """

    name: str
    version: str
    spec: ModelSpec
    thresholds: Mapping[str, float]
    intended_use: IntendedUse
    training_data: str
    weights_sha256: str
    calibrated: bool = False
    temperatures: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] | None = None
    created: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("name", "version", "training_data"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value.strip():
                raise BundleError(f"bundle card: {key} must be a non-empty text")
        if set(self.thresholds) != set(THRESHOLD_KEYS):
            wrong = sorted(set(self.thresholds) ^ set(THRESHOLD_KEYS))
            raise BundleError(f"bundle card: thresholds missing or unknown: {', '.join(wrong)}")
        for label, value in self.thresholds.items():
            if not _is_number(value) or not 0 < value < 1:
                raise BundleError(f"bundle card: threshold of {label} must lie in (0, 1)")
        for label, value in self.temperatures.items():
            if label not in THRESHOLD_KEYS:
                raise BundleError(f"bundle card: temperature of unknown label {label}")
            if not _is_number(value) or not 1e-3 <= value <= 1e3:
                raise BundleError(f"bundle card: temperature of {label} must lie in [0.001, 1000]")
        if len(self.weights_sha256) != 64 or set(self.weights_sha256) - set("0123456789abcdef"):
            raise BundleError("bundle card: weights_sha256 is not a SHA-256 in lower-case hex")

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON values."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "intended_use": self.intended_use.value,
            "intended_use_words": INTENDED_USE_WORDS[self.intended_use],
            "training_data": self.training_data,
            "calibrated": self.calibrated,
            "labels": {"exam": list(EXAM_LABELS), "image": IMAGE_LABEL},
            "thresholds": {key: float(self.thresholds[key]) for key in THRESHOLD_KEYS},
            "temperatures": {key: float(value) for key, value in self.temperatures.items()},
            "preprocessing": {
                "windows": [list(window) for window in self.spec.windows],
                "size": self.spec.size,
                "resize": RESIZE,
                **({} if self.spec.lung == "none" else {"lungs": LUNGS}),
            },
            "spec": self.spec.to_json(),
            "metrics": dict(self.metrics),
            "weights_sha256": self.weights_sha256,
            **({} if self.reference is None else {"reference": dict(self.reference)}),
            "created": dict(self.created),
        }

    @staticmethod
    def from_json(document: object) -> BundleCard:
        """Read a card from JSON values.

        Raises
        ------
        BundleError
            Unknown format, missing or unknown keys, labels or preprocessing other than this
            version's, a value out of range: one line each.
        """
        if not isinstance(document, Mapping):
            raise BundleError("bundle card: not a JSON object")
        found = document.get("format")
        if found != FORMAT:
            raise BundleError(
                f"bundle card: format {found!r} is unknown; this version reads {FORMAT}"
            )
        wrong = sorted(str(key) for key in (set(document) - {_OPTIONAL_KEY}) ^ _CARD_KEYS)
        if wrong:
            raise BundleError(f"bundle card: missing or unknown key {', '.join(wrong)}")
        if document["labels"] != {"exam": list(EXAM_LABELS), "image": IMAGE_LABEL}:
            raise BundleError(
                "bundle card: labels are not the nine exam labels and the image label"
            )
        spec = ModelSpec.from_json(document["spec"])
        objects = ["thresholds", "temperatures", "metrics", "created"]
        if _OPTIONAL_KEY in document:
            objects.append(_OPTIONAL_KEY)
        for key in objects:
            if not isinstance(document[key], Mapping):
                raise BundleError(f"bundle card: {key} must be an object")
        if not isinstance(document["calibrated"], bool):
            raise BundleError("bundle card: calibrated must be true or false")
        if not isinstance(document["weights_sha256"], str):
            raise BundleError("bundle card: weights_sha256 must be a text")
        try:
            intended_use = IntendedUse(document["intended_use"])
        except ValueError:
            raise BundleError(
                f"bundle card: intended_use {document['intended_use']!r} is not one of "
                + ", ".join(use.value for use in IntendedUse)
            ) from None
        names = {f.name for f in fields(BundleCard)} - {"spec", "intended_use"}
        card = BundleCard(
            spec=spec,
            intended_use=intended_use,
            **{key: value for key, value in document.items() if key in names},
        )
        for key in ("preprocessing", "intended_use_words"):  # derived, so they cannot be edited
            if document[key] != card.to_json()[key]:
                raise BundleError(f"bundle card: {key} does not fit the rest of the card")
        return card

    @property
    def sha256(self) -> str:
        """Identity of the model: see the module's head."""
        document = self.to_json()
        del document["created"]
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def identity(self) -> ModelIdentity:
        """The model as results name it."""
        return ModelIdentity(
            name=self.name,
            version=self.version,
            sha256=self.sha256,
            intended_use=self.intended_use,
            calibrated=self.calibrated,
        )


_CARD_KEYS = frozenset(
    [
        "format",
        "name",
        "version",
        "intended_use",
        "intended_use_words",
        "training_data",
        "calibrated",
        "labels",
        "thresholds",
        "temperatures",
        "preprocessing",
        "spec",
        "metrics",
        "weights_sha256",
        "created",
    ]
)

_OPTIONAL_KEY: Final = "reference"
"""Absent where there is none, so that cards of before keep their identity."""


def read_card(path: Path) -> BundleCard:
    """Read the card of the bundle directory `path`, without torch and without the weights.

    Raises
    ------
    BundleError
        No such bundle, or a card that cannot be used.
    """
    try:
        if not path.is_dir():
            raise BundleError(f"model bundle {path}: no such directory")
        with (path / CARD_NAME).open("rb") as file:
            text = file.read(_MAX_CARD_BYTES + 1)
    except OSError as error:
        raise BundleError(f"model bundle {path}: {CARD_NAME}: {error.strerror or error}") from None
    if len(text) > _MAX_CARD_BYTES:
        raise BundleError(f"model bundle {path}: {CARD_NAME} is too large to be a card")
    try:
        document = json.loads(text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BundleError(f"model bundle {path}: {CARD_NAME} is not JSON") from None
    try:
        return BundleCard.from_json(document)
    except BundleError as error:
        raise BundleError(f"model bundle {path}: {error}") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")  # NaN and infinities


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
