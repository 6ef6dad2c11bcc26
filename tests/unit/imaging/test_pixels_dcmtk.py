"""The decoders against an independent encoder: every lossless JPEG predictor, JPEG-LS, RLE."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from pe_triage.imaging.pixels import decode_hu
from tests.support.peers import require_program

COMMANDS = [
    ["dcmcjpeg", "+e1"],
    *(["dcmcjpeg", "+el", "+sv", str(predictor)] for predictor in range(1, 8)),
    ["dcmcjpls", "+el"],
    ["dcmcrle"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("content", ["noise", "smooth"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_streams_of_dcmtk_decode_exactly(tmp_path, ct_writer, command, content, dtype):
    rng = np.random.default_rng(1)
    if content == "noise":
        pixels = rng.integers(0, 65536, (24, 40)).astype(np.uint16).view(dtype)
    else:
        ramp = np.add.outer(np.arange(24) * 37, np.arange(40) * 11) - 500
        pixels = ramp.astype(np.int16).view(dtype)
    plain = ct_writer(tmp_path / "plain.dcm", pixels, RescaleIntercept=0)
    packed = tmp_path / "packed.dcm"
    subprocess.run([require_program(command[0], "dcmtk"), *command[1:], plain, packed], check=True)
    np.testing.assert_array_equal(decode_hu(packed), decode_hu(plain))
