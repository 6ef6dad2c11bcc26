"""One study through every lossless transfer syntax, and in both forms: identical result.

Encoders and senders are DCMTK's, but for JPEG 2000, for which DCMTK has no encoder: OpenJPEG
writes it here, and DCMTK sends. HTJ2K is not among what the SCP accepts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate

from pe_triage.assemble.eligibility import EligibilityRules, judge_series
from pe_triage.cli.analyze import read_folder
from pe_triage.imaging.volume import load_volume
from pe_triage.receive.contexts import TRANSFER_SYNTAXES
from tests.corpus import recipes
from tests.node.conftest import NewStudy
from tests.node.test_scp_receiver import receiver
from tests.support.enhanced import enhanced_from
from tests.support.node import RunningNode, send
from tests.support.peers import dcmtk_environment, require_program
from tests.unit.imaging.conftest import ENCODERS

LOSSY = {
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
}  # fmt: skip
JPEG_2000 = "1.2.840.10008.1.2.4.90"

Prepare = Callable[[Sequence[Path], Path], list[Path]]


def as_they_are(files: Sequence[Path], _folder: Path) -> list[Path]:
    return list(files)


def by_dcmtk(tool: str, *options: str) -> Prepare:
    def encode(files: Sequence[Path], folder: Path) -> list[Path]:
        program = require_program(tool, "dcmtk")
        for path in files:
            command = [program, *options, str(path), str(folder / path.name)]
            subprocess.run(command, check=True, timeout=30)
        return sorted(folder.iterdir())

    return encode


def by_openjpeg(files: Sequence[Path], folder: Path) -> list[Path]:
    for path in files:
        ds = dcmread(path)
        ds.PixelData = encapsulate([ENCODERS[JPEG_2000](np.ascontiguousarray(ds.pixel_array))])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = JPEG_2000
        ds.save_as(folder / path.name, enforce_file_format=True)
    return sorted(folder.iterdir())


SENT: dict[str, tuple[Prepare, str, tuple[str, ...]]] = {
    "1.2.840.10008.1.2.1": (as_they_are, "storescu", ("-xe",)),
    "1.2.840.10008.1.2": (as_they_are, "storescu", ("-xi",)),
    "1.2.840.10008.1.2.2": (by_dcmtk("dcmconv", "+tb"), "storescu", ("-R", "-xb")),
    "1.2.840.10008.1.2.4.70": (by_dcmtk("dcmcjpeg", "+e1"), "dcmsend", ("-dn",)),
    # storescu knows no way to propose this one.
    "1.2.840.10008.1.2.4.57": (by_dcmtk("dcmcjpeg", "+el", "+sv", "6"), "dcmsend", ("-dn",)),
    "1.2.840.10008.1.2.4.80": (by_dcmtk("dcmcjpls", "+el"), "dcmsend", ("-dn",)),
    JPEG_2000: (by_openjpeg, "dcmsend", ("-dn",)),
    "1.2.840.10008.1.2.5": (by_dcmtk("dcmcrle"), "dcmsend", ("-dn",)),
}
"""Transfer syntax: its encoder, its sender, and the sender's options."""


def test_no_lossless_syntax_is_left_out() -> None:
    assert set(SENT) == set(TRANSFER_SYNTAXES) - LOSSY


def arrived(folder: Path, files: Sequence[Path], program: str, options: Sequence[str]) -> Path:
    """Send files to a receiver by a DCMTK program; the folder of what it wrote."""
    received = folder / "received"
    received.mkdir()
    with receiver(folder / "spool") as node:
        done = subprocess.run(
            [require_program(program, "dcmtk"), *options, "-aec", "PETRIAGE", "127.0.0.1",
             str(node.port), *map(str, files)],
            env=dcmtk_environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        for path in node.instances():
            path.rename(received / path.name)
    return received


def prepared(folder: Path, prepare: Prepare) -> list[Path]:
    """Six slices of the corpus' chest, encoded."""
    plain, encoded = folder / "plain", folder / "encoded"
    plain.mkdir()
    encoded.mkdir()
    recipes.write(recipes.series_of("keep 20..25"), plain)
    return prepare(sorted(plain.iterdir()), encoded)


@pytest.mark.parametrize("syntax", SENT)
def test_the_volume_is_the_same(tmp_path: Path, syntax: str) -> None:
    prepare, program, options = SENT[syntax]
    received = arrived(tmp_path, prepared(tmp_path, prepare), program, options)
    instances = read_folder(received)
    assert {i.transfer_syntax_uid for i in instances} == {syntax}
    np.testing.assert_array_equal(load_volume(instances).hu_zyx, recipes.anatomy()[20:26])


SHORT = EligibilityRules(min_slices=2, min_coverage_mm=1, min_matrix=96, max_pixel_spacing_mm=5)
LOSSY_ENCODERS = {
    "1.2.840.10008.1.2.4.50": by_dcmtk("dcmcjpeg", "+eb"),
    "1.2.840.10008.1.2.4.51": by_dcmtk("dcmcjpeg", "+ee"),
    "1.2.840.10008.1.2.4.81": by_dcmtk("dcmcjpls", "+en", "+md", "2"),
}
"""DCMTK has no encoder for 1.2.840.10008.1.2.4.91; the corpus holds that one."""


@pytest.mark.parametrize("syntax", LOSSY_ENCODERS)
def test_what_was_compressed_with_loss_is_refused_aloud(tmp_path: Path, syntax: str) -> None:
    files = prepared(tmp_path, LOSSY_ENCODERS[syntax])
    instances = read_folder(arrived(tmp_path, files, "dcmsend", ["-dn"]))
    assert {i.transfer_syntax_uid for i in instances} == {syntax}
    verdict = judge_series(instances, SHORT)
    assert (verdict.eligible, verdict.rule) == (False, "lossy")
    assert verdict.reason is not None
    assert "compressed with loss" in verdict.reason
    allowed = judge_series(instances, replace(SHORT, allow_lossy=True))
    assert allowed.eligible
    # Never silently: who allows it is still told.
    assert any("compressed with loss" in remark for remark in allowed.remarks)


def said(doc: dict[str, Any]) -> dict[str, Any]:
    """What the answer says of the patient, and of which slices in which order."""
    keys = ("state", "outcome", "reason", "priority", "exam", "pe_probability", "findings", "model")
    slices = [(s["probability"], s["attention"]) for s in doc["slices"]]
    return {key: doc[key] for key in keys} | {"slices": slices}


@pytest.fixture(scope="module")
def plain_answer(quick_node: RunningNode) -> dict[str, dict[str, Any]]:
    """The first answer, by which the others are measured."""
    return {}


FORMS: dict[str, tuple[Prepare, str, tuple[str, ...]]] = SENT | {
    "enhanced": (lambda files, folder: enhanced_from(files, folder), "storescu", ()),
    "enhanced JPEG-LS": (
        lambda files, folder: enhanced_from(files, folder, "1.2.840.10008.1.2.4.80"),
        "dcmsend",
        ("-dn",),
    ),
}
DEFAULT = {"enhanced"}
"""JPEG lossless stands in `test_bad_input.py`; the others are long."""


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[] if f in DEFAULT else pytest.mark.long) for f in FORMS]
)
@pytest.mark.timeout(400)
def test_the_result_is_the_same(
    new_study: NewStudy,
    quick_node: RunningNode,
    plain_answer: dict[str, dict[str, Any]],
    tmp_path: Path,
    form: str,
) -> None:
    def answer(name: str) -> tuple[dict[str, Any], int]:
        prepare, program, options = FORMS[name]
        study_uid, files = new_study()
        folder = tmp_path / f"encoded {study_uid}"
        folder.mkdir()
        files = prepare(files, folder)
        done = send(
            require_program(program, "dcmtk"), quick_node, files, *options,
            environment=dcmtk_environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        doc = quick_node.wait_ended(study_uid)
        assert doc["instances"] == len(files)
        return doc, len(files)

    if not plain_answer:
        plain, count = answer("1.2.840.10008.1.2.1")
        assert plain["state"] == "DONE"
        assert plain["exam"] is not None
        assert len(plain["slices"]) == count == 60
        plain_answer.update(said(plain))
    doc, _count = answer(form)
    assert said(doc) == plain_answer
    frames = [s.get("frame") for s in doc["slices"]]
    expected = set(range(1, 61)) if form.startswith("enhanced") else {None}
    assert set(frames) == expected
