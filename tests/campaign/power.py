"""Power cuts by crash image: what a disk holds at one moment, and nothing of what is in memory.

The data directory lies on ext4 in a file, mounted over a loop device with ``commit=300``, so that
nothing reaches the file by itself for five minutes: only what the node syncs does. At a moment by
chance the node's processes are stopped where they are (SIGSTOP), the file is copied, and they are
killed. The copy is mounted in the file's place, which replays its journal as after a power cut,
and the next life of the node begins on it. Everything that was answered before is then looked for.

It is coarser than a disk with a volatile cache: what the file system has handed to the device
counts as kept, so a missing flush of the device would not be seen; a missing fsync is.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.campaign.journal import Journal
from tests.campaign.nodes import CampaignNode
from tests.campaign.session import Session
from tests.campaign.waiting import wait_for
from tests.support.peers import find_program

SIZE_MB = 48


def usable() -> str | None:
    """What is missing for power cuts; None where nothing is."""
    if os.geteuid() != 0:
        return "mounting a loop device needs root"
    for program in ("mkfs.ext4", "mount", "umount", "e2fsck"):
        if find_program(program) is None:
            return f"{program} is not installed"
    if not Path("/dev/loop-control").exists():
        return "this machine has no loop devices"
    return None


def _run(*command: object) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


class LoopDisk:
    """An ext4 file system in a file, mounted at `mount`."""

    def __init__(self, folder: Path, *, size_mb: int = SIZE_MB) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.mount = folder, folder / "mnt"
        self.mount.mkdir(exist_ok=True)
        self.image = folder / "disk-0.img"
        self._copies = 0
        self._mounted = False
        with self.image.open("wb") as file:
            file.truncate(size_mb << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", self.image)

    def attach(self) -> None:
        """Mount; replays the journal where the file is a crash image."""
        _run("mount", "-o", "loop,commit=300,noatime", self.image, self.mount)
        self._mounted = True

    def detach(self) -> None:
        """Unmount, waiting for processes that are just ending."""
        if not self._mounted:
            return
        for _ in range(50):
            done = subprocess.run(["umount", str(self.mount)], capture_output=True, check=False)
            if done.returncode == 0:
                self._mounted = False
                return
            time.sleep(0.1)
        subprocess.run(["umount", "-l", str(self.mount)], capture_output=True, check=False)
        self._mounted = False

    def copy(self) -> Path:
        """Copy the file while nobody writes; the copy is what a power cut would leave."""
        self._copies += 1
        target = self.folder / f"disk-{self._copies}.img"
        for _ in range(10):
            _run("cp", "--sparse=always", self.image, target)
            # The kernel may have written something back meanwhile: no moment would look like that.
            if filecmp.cmp(self.image, target, shallow=False):
                return target
        raise AssertionError("the image never stood still")

    def replace(self, image: Path) -> None:
        """Put the copy in the file's place; the old one is thrown away."""
        self.detach()
        self.image.unlink()
        self.image = image

    def checked(self) -> str | None:
        """What e2fsck says of the file after its journal was replayed; None where it is clean."""
        done = subprocess.run(
            ["e2fsck", "-fp", str(self.image)], capture_output=True, text=True, check=False
        )
        # 1: replaying the journal counts as a correction.
        return None if done.returncode in (0, 1) else done.stdout.strip()


def stopped(node: CampaignNode) -> bool:
    """Whether every thread of the node is stopped: system calls that had begun have ended."""
    for pid in node.pids():
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "TtZX":
                    return False
        except OSError:
            continue
    return True


def cut(session: Session, disk: LoopDisk, *, fsck: bool) -> float:
    """Cut the power and bring the node up again; seconds until it answers again."""
    node = session.node
    node.signal_all(signal.SIGSTOP)
    wait_for(lambda: stopped(node), 30, "every thread is stopped")
    image = disk.copy()
    cut_s = time.monotonic()
    node.kill()
    node.wait_gone(node.pids())
    disk.replace(image)
    if fsck and (said := disk.checked()):
        raise AssertionError(f"the file system is damaged: {said}")
    disk.attach()
    node.start()
    wait_for(lambda: session.scanner.first_ack_after(cut_s), 120, "an answer after the power cut")
    return (session.scanner.first_ack_after(cut_s) or cut_s) - cut_s


def session_of_cuts(
    folder: Path, number: int, journal: Journal, *, cuts: int = 8, plant: str = ""
) -> list[str]:
    """Cut the power of one node again and again, check, and write everything down."""
    rng = random.Random(number)
    home = folder / f"power-{number}"
    shutil.rmtree(home, ignore_errors=True)
    disk = LoopDisk(home / "disk")
    trials: list[float] = []
    disk.attach()
    try:
        with Session(home, number, data_dir=disk.mount / "data", plant=plant) as session:
            session.node.start()
            with session.streaming():
                for turn in range(cuts):
                    time.sleep(rng.uniform(0.2, 6.0))
                    trials.append(cut(session, disk, fsck=turn % 4 == 0))
            found = session.check()
            figures = session.figures()
            session.node.close()
    finally:
        disk.detach()
    return journal.add_session(
        "power",
        number,
        [{"how": "image", "recovered_s": round(s, 2)} for s in trials],
        found,
        figures,
        home,
    )
