"""Synthetic CT pulmonary angiograms with known truth.

A commissioning tool for the node and a source of training data for its demonstration model. It is
no patient: anatomy is made of simple shapes, disease of tubes, and no figure measured on it holds
for people. Every image says so (Quality Control Image YES, names and identifiers that begin with
PHANTOM).

>>> study = generate_study(7, "pe-acute", size=64, n_slices=16)
>>> study.hu_zyx.shape
(16, 64, 64)
"""

from __future__ import annotations

from pe_triage.phantom.dialects import DIALECTS, PLAIN, Dialect, dialect_for, find_dialect
from pe_triage.phantom.distributions import Choice, Uniform
from pe_triage.phantom.effects import Effects
from pe_triage.phantom.presets import PRESETS, Preset, find_preset
from pe_triage.phantom.study import PhantomStudy, generate_study
from pe_triage.phantom.truth import SLICE_POSITIVE_MIN_AREA_MM2, ClotTruth
from pe_triage.phantom.writer import (
    TRANSFER_SYNTAXES,
    WrittenStudy,
    identity_of,
    to_datasets,
    truth_of,
    write_study,
)

__all__ = [
    "DIALECTS",
    "PLAIN",
    "PRESETS",
    "SLICE_POSITIVE_MIN_AREA_MM2",
    "TRANSFER_SYNTAXES",
    "Choice",
    "ClotTruth",
    "Dialect",
    "Effects",
    "PhantomStudy",
    "Preset",
    "Uniform",
    "WrittenStudy",
    "dialect_for",
    "find_dialect",
    "find_preset",
    "generate_study",
    "identity_of",
    "to_datasets",
    "truth_of",
    "write_study",
]
