"""Enhanced CT gets the answers of single-frame CT: every case of the corpus, written as frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pe_triage.assemble.eligibility import judge_series
from pe_triage.cli import main
from pe_triage.frames import images_of
from pe_triage.imaging.facts import facts_from_json, facts_to_json
from pe_triage.node.selection import Selection, select_volume
from tests.corpus import recipes
from tests.corpus.test_corpus import CASES, RULES, run

OTHERWISE = {
    # What an instance of one SOP class says once for all its frames.
    "enhanced-only-named", "legacy-only-named", "secondary-capture", "one-capture", "frames",
    # The image's own type stands in for that of its frames.
    "no-type",
    # No number, which the library that writes frames does not write either.
    "thickness-text",
    # Lossy Image Compression is required of Enhanced CT (PS3.3 C.8.15.2): it is never left unsaid.
    "lossy-jpeg-ls", "lossy-jpeg-2000",
}  # fmt: skip
"""Cases about what an Enhanced CT image cannot be, or says in another way."""
PLAIN = [c for c in CASES if "enhanced" not in c.recipe and c.id not in OTHERWISE]
EVERY = 20
"""One case in so many is run by default, all of them with the long tests."""


def answer(selection: Selection) -> tuple[object, ...]:
    """What must not depend on the form."""
    rules = sorted(v.rule or "" for v in selection.choice.verdicts)
    volume = selection.volume
    if volume is None:
        return rules, None
    digest = hash(volume.hu_zyx.tobytes())
    return rules, volume.series_uid, digest, volume.spacing_mm, selection.cautions


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if n % EVERY == 0 else pytest.mark.long, id=c.id)
     for n, c in enumerate(PLAIN)],
)  # fmt: skip
def test_a_case_written_as_frames_gets_the_same_answer(case: recipes.Case, tmp_path: Path) -> None:
    as_frames = "||".join(f"{part}; enhanced" for part in case.recipe.split("||"))
    assert answer(run(as_frames, tmp_path)) == answer(run(case.recipe, tmp_path))


def test_frames_keep_their_numbers_in_the_order_of_the_chest(tmp_path: Path) -> None:
    received = recipes.write(recipes.series_of("keep ::-1; enhanced"), tmp_path)
    (instance,) = received
    volume = select_volume(received, RULES).volume
    assert volume is not None
    assert volume.frame_numbers == tuple(range(recipes.SLICES, 0, -1))
    assert set(volume.sop_instance_uids) == {instance.sop_instance_uid}
    assert volume.frame_of(0) == recipes.SLICES


def test_each_interior_frame_is_missed_when_it_is_gone(tmp_path: Path) -> None:
    (instance,) = recipes.write(recipes.series_of("enhanced"), tmp_path)
    frames = images_of([instance])
    assert len(frames) == recipes.SLICES
    for missing in range(1, len(frames) - 1):
        verdict = judge_series(frames[:missing] + frames[missing + 1 :], RULES)
        assert verdict.rule == "gap"


def test_facts_of_frames_survive_the_database(tmp_path: Path) -> None:
    recipe = "set KVP 120 on 3; set AcquisitionNumber - on 5; enhanced"
    (instance,) = recipes.write(recipes.series_of(recipe), tmp_path)
    stored = facts_from_json(facts_to_json(instance.facts))
    assert stored == instance.facts
    frames = images_of([replace(instance, facts=stored)])
    assert [f.facts.kvp for f in frames[2:5]] == [100.0, 120.0, 100.0]
    assert frames[5].facts.acquisition_number is None
    assert frames[6].facts.acquisition_number == 2
    assert frames[6].facts.kernel == ("B30f",)
    assert all(f.facts.contrast_agent for f in frames)
    assert [f.frame for f in frames] == list(range(1, recipes.SLICES + 1))
    assert images_of(frames) == frames
    # What all frames share is held once: a row of a thousand frames stays small.
    assert instance.facts.frames[0].image_orientation is None


def test_volume_of_frames_lies_where_the_slices_did(tmp_path: Path) -> None:
    def volume(recipe: str) -> tuple[object, ...]:
        found = run(recipe, tmp_path).volume
        assert found is not None
        return found.hu_zyx, found.affine_lps

    for plain, frames in zip(volume("shuffle 5"), volume("shuffle 5; enhanced"), strict=True):
        np.testing.assert_array_equal(plain, frames)


def test_explain_speaks_of_frames_and_of_what_is_wrong_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    recipes.write(recipes.series_of("enhanced || enhanced stated 53 || drop 9; enhanced"), folder)
    config = tmp_path / "rules.toml"
    config.write_text("[eligibility]\nmin_matrix = 96\nmax_pixel_spacing_mm = 5.0\n")
    assert main(["analyze", str(folder), "--explain", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "'CTPA 3.0 B30f', 52 slices: eligible (chosen)" in out
    assert "refused by functional_groups: the frames of the Enhanced CT image cannot be told" in out
    assert "what to do: Let the scanner or PACS send the image again" in out
    assert "refused by gap: slices are missing: 1 gap(s)" in out
    assert "study: analysed: the only eligible series, 52 slices" in out
