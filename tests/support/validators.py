"""Independent judges of DICOM objects: dciodvfy of dicom3tools and PixelMed's SR validator."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path
from typing import IO

import pydicom
from pydicom.dataset import Dataset

from tests.support.peers import find_program, missing, require_program

PIXELMED_JAR = Path("/usr/share/java/pixelmed.jar")
_SOURCE = Path(__file__).with_name("ReportValidator.java")
_NO_LIMITS = tuple(
    f"-Djdk.xml.{name}=0" for name in ("xpathTotalOpLimit", "xpathExprOpLimit", "xpathExprGrpLimit")
)
"""The rules of TID 1500 are longer than what Java allows by default."""

_OF_2022 = {
    "24627-2": ("18748-4", "LN"),
    "55111-9": ("121064", "DCM"),
    "59776-5": ("121070", "DCM"),
    "19005-8": ("121072", "DCM"),
}
"""Codes of today's TID 2000 to those that the validator of 2022 knows."""


def dciodvfy_errors(path: Path) -> list[str]:
    """Return the lines of dciodvfy that begin with Error."""
    done = subprocess.run(
        [require_program("dciodvfy", "dicom3tools"), str(path)],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    lines = (done.stdout + done.stderr).splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    assert done.returncode == 0 or errors
    return errors


class PixelMed:
    """PixelMed's SR validator, started once for many documents; a context."""

    def __enter__(self) -> PixelMed:
        if not PIXELMED_JAR.is_file():
            missing("PixelMed's validator", "libpixelmed-java")
        java = require_program("java", "default-jdk-headless")
        if find_program("javac") is None:  # `java FILE.java` compiles
            missing("javac", "default-jdk-headless")
        self._process = subprocess.Popen(
            [java, *_NO_LIMITS, "-cp", str(PIXELMED_JAR), str(_SOURCE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        return self

    def __exit__(self, *_exc: object) -> None:
        _pipe(self._process.stdin).close()
        self._process.wait(30)
        _pipe(self._process.stdout).close()

    def complaints(self, path: Path, words: tuple[str, ...] = ("Error",)) -> list[str]:
        """Return the lines about one document that begin with `words`."""
        _pipe(self._process.stdin).write(f"{path}\n")
        _pipe(self._process.stdin).flush()
        lines = []
        for line in _pipe(self._process.stdout):
            if line.rstrip() == "== END":
                break
            lines.append(line.rstrip())
        assert "IOD validation complete" in lines, lines
        assert "Root Template Validation Complete" in lines, lines
        return [line for line in lines if line.startswith(words)]


def narrative_of_2022(encoded: bytes) -> Dataset:
    """Return the narrative under the title and section codes that the validator knows.

    Under its own ones the whole document must be known to TID 2000: neither an error nor "not in
    template".
    """
    ds = pydicom.dcmread(BytesIO(encoded))
    older = dict(_OF_2022)
    for holder in (ds, *ds.ContentSequence):
        code = holder.ConceptNameCodeSequence[0]
        if code.CodeValue in older:
            code.CodeValue, code.CodingSchemeDesignator = older.pop(code.CodeValue)
    assert not older
    ds.ConceptNameCodeSequence[0].CodeMeaning = "Diagnostic Imaging Report"
    return ds


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
