"""What was prepared reaches the run of the very same images, and no other."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import ReceivedInstance
from pe_triage.imaging.decoded import DecodedSlices
from pe_triage.imaging.geometry import InPlane
from pe_triage.infer import keyslices
from pe_triage.infer.recall import Key
from pe_triage.node import preparing as preparing_module
from pe_triage.node import work as work_module
from pe_triage.node.preparing import Preparing
from pe_triage.node.work import FilesRead, StudyWork
from tests.support.node import wait_for
from tests.support.store import instance


class Work:
    """Stands for a `StudyWork`; `during` is what its steps do."""

    def __init__(self, images: Sequence[Any], during: Callable[[], None]) -> None:
        self.images, self.during, self.done = images, during, False

    def do_everything(self, _key_slices: int, beat: Callable[[], None]) -> None:
        self.during()
        beat()
        self.done = True


def make(during: Callable[[], None] = lambda: None) -> Preparing:
    return Preparing(lambda images, _read: cast(StudyWork, Work(images, during)), 5)


def test_a_run_gets_what_was_prepared_of_its_study_once() -> None:
    preparing = make()
    assert preparing.prepare("a", [], FilesRead(), lambda: False)
    preparing.expect("a")
    with preparing.handing_over("a") as work:
        assert cast(Any, work).done
        # The predictor is the run's now.
        assert not preparing.prepare("b", [], FilesRead(), lambda: False)
    with preparing.handing_over("a") as work:
        assert work is None


def test_a_run_of_another_study_gets_nothing_and_nothing_is_held_any_more() -> None:
    preparing = make()
    assert preparing.prepare("a", [], FilesRead(), lambda: False)
    with preparing.handing_over("b") as work:
        assert work is None
    with preparing.handing_over("a") as work:
        assert work is None


@pytest.mark.parametrize(("claimed", "given"), [("a", True), ("b", False)])
def test_a_run_waits_for_its_own_preparation_and_ends_another(claimed: str, given: bool) -> None:
    begun, idle, go_on = threading.Event(), threading.Event(), threading.Event()
    idle.set()

    def during() -> None:
        begun.set()
        assert go_on.wait(30)

    preparing = make(during)
    prepared: list[bool] = []
    thread = threading.Thread(
        target=lambda: prepared.append(
            preparing.prepare("a", [], FilesRead(), lambda: not idle.is_set())
        )
    )
    thread.start()
    assert begun.wait(30)
    preparing.expect(claimed)
    idle.clear()
    go_on.set()
    with preparing.handing_over(claimed) as work:
        assert (work is not None) == given
    thread.join(30)
    assert prepared == [given]


def test_a_step_that_fails_leaves_nothing_behind_and_the_predictor_free() -> None:
    def during() -> None:
        raise ValueError("a step")

    preparing = make(during)
    with pytest.raises(ValueError, match="a step"):
        preparing.prepare("a", [], FilesRead(), lambda: False)
    with preparing.handing_over("a") as work:
        assert work is None


def test_what_no_job_comes_for_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    preparing = make()
    assert preparing.prepare("a", [], FilesRead(), lambda: False)
    monkeypatch.setattr(preparing_module, "UNCLAIMED_S", 0.05)
    preparing.drop_unclaimed({"a"})
    preparing.drop_unclaimed(set())
    assert preparing._held is not None

    def dropped() -> bool:
        preparing.drop_unclaimed(set())
        return preparing._held is None

    wait_for(dropped, 10, "let go")


def test_work_is_of_exactly_the_images_that_it_was_made_of() -> None:
    images = [instance("1.2.3", n) for n in range(3)]
    work = StudyWork(images, cast(Any, None), EligibilityRules())
    assert work.is_of(images[::-1])
    assert not work.is_of(images[:2])
    assert not work.is_of([*images, instance("1.2.3", 9)])
    assert not work.is_of([*images[:2], images[1]])
    for change in ({"sha256": "0" * 64}, {"path": images[2].path.with_name("other.dcm")}):
        changed: ReceivedInstance = dataclasses.replace(images[2], **cast(Any, change))
        assert not work.is_of([*images[:2], changed])


class Explaining:
    """A predictor that names the volume it was asked about, and fails for some."""

    def __init__(self, fails_for: object, begun: threading.Event, go_on: threading.Event) -> None:
        self.fails_for, self.begun, self.go_on = fails_for, begun, go_on
        self.asked: list[object] = []

    def predict(self, volume: object, *, beat: Callable[[], None], keys: object) -> str:
        self.asked.append(volume)
        self.begun.set()
        assert self.go_on.wait(30)
        if volume is self.fails_for:
            raise ValueError("a step")
        return f"inference of {volume}"


@pytest.mark.parametrize("fails", ["none", "the one passed over", "the chosen one"])
def test_of_a_volume_that_is_not_chosen_nothing_is_left(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [instance("1.2.3", n) for n in range(3)]
    first, chosen = (
        cast(Any, SimpleNamespace(sop_instance_uids=(), frame_numbers=())) for _ in range(2)
    )
    volumes = iter([first, chosen])

    def select(_images: object, _rules: object, *, beat: object, load: Callable[..., Any]) -> Any:
        load(images)
        assert in_explaining.wait(30)
        found = SimpleNamespace(volume=load(images))
        passed_over.set()
        return found

    drawn: list[Any] = []
    in_explaining, passed_over = threading.Event(), threading.Event()
    monkeypatch.setattr(work_module, "load_volume", lambda _images, decoded: next(volumes))
    monkeypatch.setattr(work_module, "select_volume", select)
    monkeypatch.setattr(keyslices, "key_slices", lambda v, i, _p, n: (v, i, n))
    monkeypatch.setattr(
        work_module.SlicePictures, "draw", lambda _self, volume, _keys, _limit: drawn.append(volume)
    )
    failing = {"none": None, "the one passed over": first, "the chosen one": chosen}[fails]
    predictor = Explaining(failing, in_explaining, passed_over)
    work = StudyWork(images, cast(Any, predictor), EligibilityRules())
    if failing is chosen:
        with pytest.raises(ValueError, match="a step"):
            work.do_everything(5, lambda: None)
        return
    work.do_everything(5, lambda: None)
    assert predictor.asked == [first, chosen]
    # The explaining of the other ended where it was: nobody waits for pictures of it.
    assert drawn == [chosen]
    inference = work.inference(chosen, lambda: None)
    assert cast(Any, inference) == f"inference of {chosen}"
    assert cast(Any, work.key_slices(chosen, inference, 5)) == (chosen, inference, 5)
    assert predictor.asked == [first, chosen]


def test_a_key_is_of_the_very_pixels_of_the_volume_turned_as_they_are() -> None:
    images = [instance("1.2.3", n) for n in range(5)]
    read = FilesRead(slices=DecodedSlices(limit_bytes=1 << 20))
    hu_zyx = np.arange(5 * 6, dtype=np.int16).reshape(5, 2, 3)
    as_it_is = InPlane(transpose=False, flip_y=False, flip_x=True)
    for n, image in enumerate(images):
        read.slices.keep(image.path, hu_zyx[n])
        read.slices.moved(image.path, hu_zyx[n])
        read.keys[image.path] = (as_it_is, bytes([n]))
    read.slices.keep(Path("other"), hu_zyx[1])
    read.slices.moved(images[1].path, hu_zyx[1].copy())  # another volume's by now
    read.slices.forget([images[2].path])  # read from its file, perhaps
    read.keys[images[3].path] = (InPlane(transpose=False, flip_y=True, flip_x=True), b"x")
    del read.keys[images[4].path]
    work = StudyWork(images, cast(Any, None), EligibilityRules(), read)

    def keys(**changed: Any) -> list[Key | None]:
        uids = [image.sop_instance_uid for image in images]
        volume: dict[str, Any] = {
            "hu_zyx": hu_zyx, "frame_numbers": (), "source_transpose": False,
            "source_flip_yx": (False, True), "sop_instance_uids": uids,
        }  # fmt: skip
        return work._keys_of(cast(Any, SimpleNamespace(**volume | changed)))

    assert keys() == [b"\x00", None, None, None, None]
    assert keys(source_transpose=True) == [None] * 5
    assert keys(frame_numbers=(1, 2, 3, 4, 5)) == []
