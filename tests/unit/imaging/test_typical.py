"""What is not made as a chest usually is, told from the pixels alone."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np
import pytest

from pe_triage.assemble.eligibility import cautions_of
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import CtVolume
from pe_triage.imaging.measure import figures_of, measure_volume
from pe_triage.imaging.typical import FIGURES, LOG, strangeness, usual_of
from pe_triage.imaging.volume import load_volume
from pe_triage.phantom import generate_study

RULES = EligibilityRules()


def as_volume(hu_zyx: np.ndarray, spacing_mm: tuple[float, float, float]) -> CtVolume:
    return CtVolume(
        hu_zyx=np.ascontiguousarray(hu_zyx),
        spacing_mm=spacing_mm,
        affine_lps=np.eye(4),
        sop_instance_uids=tuple(f"1.{z}" for z in range(len(hu_zyx))),
        series_uid="1.2",
    )


@cache
def chest() -> CtVolume:
    study = generate_study(6, "standard", size=128, slice_spacing_mm=3.0)
    return as_volume(study.hu_zyx, study.spacing_mm)


def strange(hu_zyx: np.ndarray) -> list[str]:
    measures = measure_volume(as_volume(hu_zyx, chest().spacing_mm))
    return [w for w in cautions_of(measures, RULES) if w.startswith("not made as a chest")]


def test_a_chest_is_usual() -> None:
    assert strange(chest().hu_zyx) == []
    assert set(figures_of(chest())) == set(FIGURES)


def test_a_turned_chest_is_noticed_whatever_its_headers_say() -> None:
    (words,) = strange(chest().hu_zyx[:, ::-1])
    assert "midline behind less in front" in words


def test_tissue_of_another_kind_is_noticed() -> None:
    hu = chest().hu_zyx.astype(np.int32)
    # Everything between water and bone is as bright as bone: the lungs and air are right.
    assert strange(np.where((hu > -30) & (hu < 400), 600, hu).astype(np.int16))


def test_no_lung_gives_no_figures_and_no_complaint() -> None:
    box = np.full((40, 64, 64), -1000, np.int16)
    box[:, 10:54, 10:54] = 40
    assert figures_of(as_volume(box, (3.0, 3.0, 3.0))) == {}
    assert strangeness({}) is None


def test_the_table_of_the_package_is_of_these_figures() -> None:
    document = json.loads(files("pe_triage.imaging").joinpath("typical.json").read_text("utf-8"))
    assert set(document["figures"]) == set(FIGURES)
    assert set(FIGURES) >= LOG
    assert document["made_by"].endswith("tests/benchmarks/typical.py")
    assert all(row["spread"] > 0 for row in document["figures"].values())
    table = usual_of([figures_of(chest())] * 3)
    found = strangeness(figures_of(chest()), table)
    assert found.spreads == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["chest_siemens_b40f", "chest_siemens_b70f", "chest_philips_b"])
def test_real_chests_are_usual_and_at_rest(real_ct, receive_file, name: str) -> None:
    volume = load_volume([receive_file(p) for p in sorted((real_ct / name).glob("*.dcm"))])
    measures = measure_volume(volume)
    assert measures.strangeness < RULES.max_strangeness
    assert measures.unevenness < RULES.max_unevenness
