"""Every case of the corpus gets the answer that its row states, through real files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pe_triage.assemble.advice import ADVICE
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.node.selection import Selection, select_volume
from tests.corpus import recipes

CASES = recipes.read_cases(Path(__file__).with_name("cases.md"))
RULES = EligibilityRules(min_matrix=96, max_pixel_spacing_mm=5.0)
ANSWERS = {"eligible", "corrected", "mirrored", "cautioned", "refused"}


def run(recipe: str, folder: Path) -> Selection:
    selection = select_volume(recipes.write(recipes.series_of(recipe), folder), RULES)
    for path in folder.iterdir():
        path.unlink()
    return selection


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case(case: recipes.Case, tmp_path: Path) -> None:
    selection = run(case.recipe, tmp_path)
    choice, volume = selection.choice, selection.volume
    assert "CORPUS" not in choice.reason
    if case.answer == "refused":
        assert volume is None, choice.reason
        assert case.words in choice.reason
        assert case.rule in ADVICE
        if case.rule != "tie":
            assert case.rule in {v.rule for v in choice.verdicts}
        return
    assert volume is not None, choice.reason
    if case.answer.startswith("series "):
        assert volume.series_uid == f"{recipes.STUDY_UID}.{ord(case.answer[-1])}"
        assert case.words in choice.reason
    elif case.answer == "cautioned":
        assert any(case.words in caution for caution in selection.cautions)
        return
    elif case.answer == "corrected":
        np.testing.assert_array_equal(volume.hu_zyx, recipes.anatomy())
        plain = recipes.base()
        at = volume.affine_lps @ [0, 0, 0, 1]
        np.testing.assert_allclose(at[:3], plain.origin_mm, atol=1e-3)
        np.testing.assert_allclose(
            np.diag(volume.affine_lps)[:3], [plain.pixel_mm, plain.pixel_mm, 3.0], atol=2e-3
        )
    elif case.answer == "mirrored":
        np.testing.assert_array_equal(volume.hu_zyx, recipes.anatomy()[:, :, ::-1])
    assert selection.cautions == ()


def test_the_corpus_is_whole() -> None:
    assert len(CASES) >= 150
    assert [i for i, n in Counter(c.id for c in CASES).items() if n > 1] == []
    for case in CASES:
        assert case.answer in ANSWERS or case.answer[:7] == "series ", case
        assert bool(case.rule) == (case.answer in ("refused", "cautioned")), case
        assert case.what
    # Left and right differ in the base, or mirroring would prove nothing.
    anatomy = recipes.anatomy()
    assert np.mean(anatomy != anatomy[:, :, ::-1]) > 0.1


def test_each_interior_slice_is_missed_when_it_is_gone(tmp_path: Path) -> None:
    (whole,) = recipes.series_of("nothing")
    received = recipes.write([whole], tmp_path)
    for missing in range(1, len(received) - 1):
        selection = select_volume(received[:missing] + received[missing + 1 :], RULES)
        assert selection.volume is None
        assert "slices are missing: 1 gap(s), the largest 6.0 mm" in selection.choice.reason
    for end in (received[1:], received[:-1]):
        assert select_volume(end, RULES).volume is not None
