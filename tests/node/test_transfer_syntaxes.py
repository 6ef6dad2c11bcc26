"""One study by a real sender through every lossless transfer syntax: one volume, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pe_triage.cli.analyze import read_folder
from pe_triage.imaging.volume import load_volume
from tests.corpus import recipes
from tests.node.test_scp_receiver import receiver, storescu

SENT = (
    ("1.2.840.10008.1.2", "-xi"),
    ("1.2.840.10008.1.2.1", "-xe"),
    ("1.2.840.10008.1.2.2", "-xb"),
    ("1.2.840.10008.1.2.4.70", "-xs"),
    ("1.2.840.10008.1.2.4.80", "-xt"),
    ("1.2.840.10008.1.2.4.90", "-xv"),
    ("1.2.840.10008.1.2.5", "-xr"),
)
"""Transfer syntax, and how storescu proposes it (it knows no way for 1.2.840.10008.1.2.4.57)."""


@pytest.mark.parametrize(("syntax", "flag"), SENT)
def test_the_volume_is_the_same(tmp_path: Path, syntax: str, flag: str) -> None:
    folder = tmp_path / "sent"
    folder.mkdir()
    recipes.write(recipes.series_of(f"syntax {syntax}"), folder)
    with receiver(tmp_path / "spool") as node:
        done = storescu(node.port, "-R", flag, "+sd", str(folder))
        assert done.returncode == 0, done.stdout + done.stderr
        received = tmp_path / "received"
        received.mkdir()
        for path in node.instances():
            path.rename(received / path.name)
    instances = read_folder(received)
    assert {i.transfer_syntax_uid for i in instances} == {syntax}
    np.testing.assert_array_equal(load_volume(instances).hu_zyx, recipes.anatomy())
