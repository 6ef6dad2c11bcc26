"""A real node whose files go, that is backed up while it works, and comes back from the backup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from pe_triage.receive.storing import FreeSpace
from tests.node.conftest import NewStudy, storescu
from tests.node.test_scp_receiver import make_ct, receiver
from tests.support.dcmtk import StoreScp
from tests.support.node import RunningNode, pe_triage, wait_for

SETTINGS = """
grace_s = 0.5
min_free_mb = 1
lease_s = 5
threads = 2
send_to = ["{pacs}"]

[[urgency]]
attribute = "protocol_name"
words = ["stat"]

[retention]
images_days = {days}
settle_h = 0
"""


def test_refused_while_space_is_low_and_taken_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one association: the sender sees A700, and 0000 as soon as there is space enough."""
    free = [1 << 40]
    monkeypatch.setattr(FreeSpace, "bytes", lambda *_: free[0])
    images = [make_ct("1.2.3", number) for number in range(1, 5)]
    with receiver(tmp_path / "spool", min_free_bytes=1 << 30) as node:
        ae = AE()
        ae.add_requested_context(images[0].SOPClassUID, images[0].file_meta.TransferSyntaxUID)
        association = ae.associate("127.0.0.1", node.port, ae_title="PETRIAGE")
        answers = []
        for image, bytes_ in zip(images, (1 << 40, (1 << 30) - 1, 1 << 30, 5 << 28), strict=True):
            free[0] = bytes_
            answers.append(association.send_c_store(image).Status)
        association.release()
        assert answers == [0x0000, 0xA700, 0xA700, 0x0000]
        assert len(node.instances()) == 2


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_removed_backed_up_killed_and_restored(
    new_study: NewStudy, tiny_bundle: Path, store_scp: StoreScp, tmp_path: Path
) -> None:
    config = tmp_path / "site.toml"
    config.write_text(SETTINGS.format(days=1e-9, pacs=store_scp.address), encoding="utf-8")
    flags = ("--model", tiny_bundle, "--quiet-s", 3, "--config", config)
    data_dir = tmp_path / "node"
    where = ("--data-dir", data_dir, "--config", config)
    node = RunningNode(data_dir, *flags, start=False)
    try:
        node.start(180)
        first, files = new_study(ProtocolName="CTPA STAT")
        storescu(node, files)
        doc = node.wait_ended(first, timeout_s=300)
        assert node.events("study.complete")[0]["place"] == "STAT"

        def emptied() -> dict[str, Any] | None:
            now = node.show(first)
            return now if now is not None and now["instances_held"] == 0 else None

        doc = wait_for(emptied, 180, "its images go")
        assert (doc["state"], doc["run"]) == ("DONE", 1)
        # The row first, then the files.
        wait_for(
            lambda: not list((data_dir / "spool" / "studies").rglob("*.dcm")), 60, "its files go"
        )
        table = pe_triage("studies", *where).stdout
        assert "no longer held" in table
        refused = pe_triage("reprocess", first, *where)
        assert refused.returncode == 2
        assert "no longer held here" in refused.stderr
        said = json.loads(pe_triage("retention", "--json", *where).stdout)
        assert (said["enabled"], said["studies"]) == (True, 0)

        # A copy while a study is being sent and analysed.
        second, more = new_study()
        storescu(node, more)
        saved = pe_triage("backup", tmp_path / "backup", *where)
        assert saved.returncode == 0, saved.stderr
        node.kill()
        data_dir.rename(tmp_path / "lost")
        back = pe_triage("restore", tmp_path / "backup", *where)
        assert back.returncode == 0, back.stderr
        again = pe_triage("restore", tmp_path / "backup", *where)
        assert again.returncode == 2
        config.write_text(SETTINGS.format(days=30, pacs=store_scp.address), encoding="utf-8")
        node.start(180)
        doc = node.wait_ended(second, timeout_s=300)
        assert doc["state"] == "DONE"
        assert doc["instances"] == len(more)
        # What was there before is there, and what was removed may come again.
        assert node.show(first)["outcome"] is not None  # type: ignore[index]
        storescu(node, files)
        wait_for(
            lambda: node.show(first)["instances_held"] == len(files),  # type: ignore[index]
            60,
            "its images are held again",
        )
        assert node.show(first)["run"] == 1  # type: ignore[index]
        assert all(count == 1 for count in store_scp.stored(first).values())
        assert node.stop() == 0
    finally:
        node.kill()
