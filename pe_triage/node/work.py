"""The slow steps of one study's analysis, each done at most once.

A run makes its own. What an idle worker has done before its study was known to be complete
(`node.ahead`) is handed to the run as one of these, if it was made of the very same images.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset

from pe_triage.assemble.eligibility import EligibilityRules
from pe_triage.domain import CtVolume, KeySlice, ReceivedInstance
from pe_triage.imaging.decoded import DecodedSlices
from pe_triage.imaging.geometry import InPlane
from pe_triage.imaging.volume import load_volume
from pe_triage.node.selection import Load, Selection, select_volume
from pe_triage.node.source_headers import read_header
from pe_triage.report.heatmap_picture import LIMIT
from pe_triage.report.slices import SlicePictures

if TYPE_CHECKING:
    from pe_triage.infer.predictor import Inference, Predictor
    from pe_triage.infer.recall import Key
    from pe_triage.node.analysis import Answer

Beat = Callable[[], None]
"""Called between pieces of long work; what it raises ends the work."""


@dataclass(frozen=True, kw_only=True)
class FilesRead:
    """What has been read of a study's files already, by path."""

    headers: dict[Path, Dataset] = field(default_factory=dict)
    """As of `read_header`; more is added."""
    slices: DecodedSlices = field(default_factory=DecodedSlices)
    keys: dict[Path, tuple[InPlane, Key]] = field(default_factory=dict)
    """By what the embedding of a slice, turned so, is kept (`Recall.key`)."""


class _UselessError(Exception):
    """What is being explained was not chosen."""


class StudyWork:
    """Steps of one analysis, and what they gave.

    A step that raises leaves nothing behind. For one thread at a time, but for those that it starts
    itself.

    Parameters
    ----------
    images
        The images that the run is about; their digests say what the files hold.
    read
        What has been read of them already.
    """

    def __init__(
        self,
        images: Sequence[ReceivedInstance],
        predictor: Predictor,
        rules: EligibilityRules,
        read: FilesRead | None = None,
    ) -> None:
        self._images = tuple(images)
        self._predictor = predictor
        self._rules = rules
        self._selection: Selection | None = None
        self._inferred: tuple[CtVolume, Inference] | None = None
        self._key_slices: dict[int, tuple[Inference, tuple[KeySlice, ...]]] = {}
        self._read = read or FilesRead()
        self.pictures = SlicePictures()
        self.answer: Answer | None = None
        """To a question that a run may ask again; see `analysis.prepare_answer`."""

    def is_of(self, images: Sequence[ReceivedInstance]) -> bool:
        """Whether it was made of exactly these images, whatever their order."""
        mine, theirs = ({i.sop_instance_uid: i for i in some} for some in (self._images, images))
        return len(self._images) == len(images) and mine == theirs

    def selection(self, beat: Beat) -> Selection:
        """The series that is analysed, or why there is none; see `select_volume`."""
        return self._select(beat, self._load)

    def _select(self, beat: Beat, load: Load) -> Selection:
        if self._selection is None:
            self._selection = select_volume(self._images, self._rules, beat=beat, load=load)
        return self._selection

    def inference(self, volume: CtVolume, beat: Beat) -> Inference:
        """The prediction for the volume of `selection`."""
        if self._inferred is None or self._inferred[0] is not volume:
            found = self._predictor.predict(volume, beat=beat, keys=self._keys_of(volume))
            self._inferred = (volume, found)
        return self._inferred[1]

    def _keys_of(self, volume: CtVolume) -> list[Key | None]:
        """Of those slices of the volume that are the very ones whose keys were computed."""
        if volume.frame_numbers or not self._read.keys:
            return []
        flip_y, flip_x = volume.source_flip_yx
        turned = InPlane(transpose=volume.source_transpose, flip_y=flip_y, flip_x=flip_x)
        paths = {image.sop_instance_uid: image.path for image in self._images}
        keys: list[Key | None] = []
        for z, uid in enumerate(volume.sop_instance_uids):
            hu_yx = self._read.slices.get(paths[uid])
            plane, key = self._read.keys.get(paths[uid], (None, None))
            same = hu_yx is not None and np.may_share_memory(hu_yx, volume.hu_zyx[z])
            keys.append(key if same and plane == turned else None)
        return keys

    def key_slices(
        self, volume: CtVolume, inference: Inference, count: int
    ) -> tuple[KeySlice, ...]:
        """`count` key slices of `inference`, explained."""
        from pe_triage.infer.keyslices import key_slices

        found = self._key_slices.get(count)
        if found is None or found[0] is not inference:
            found = (inference, key_slices(volume, inference, self._predictor, count))
            self._key_slices[count] = found
        return found[1]

    def header(self, image: ReceivedInstance) -> Dataset:
        """Header of one of the images; whoever changes it changes a copy."""
        headers = self._read.headers
        if image.path not in headers:
            headers[image.path] = read_header(image.path)
        return headers[image.path]

    def _load(self, instances: Sequence[ReceivedInstance]) -> CtVolume:
        return load_volume(instances, decoded=self._read.slices)

    def do_everything(self, key_slices: int, beat: Beat) -> None:
        """Do all steps that a run may ask for, some of them side by side.

        Raises
        ------
        Exception
            Whatever a step raises: the run that meets it says what it means.
        """
        volume = self._select_beside(key_slices, beat)
        if volume is None:
            return
        self._explain(volume, key_slices, beat)
        beat()
        analysed = set(volume.sop_instance_uids)
        for image in self._images:
            if image.sop_instance_uid in analysed:
                self.header(image)

    def _select_beside(self, key_slices: int, beat: Beat) -> CtVolume | None:
        """Measure the first volume that is read, mostly the chosen one, while it is explained."""
        useless = threading.Event()

        def beat_beside() -> None:
            if useless.is_set():
                raise _UselessError
            beat()

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="explain") as beside:
            begun: list[tuple[CtVolume, Future[None]]] = []

            def load(instances: Sequence[ReceivedInstance]) -> CtVolume:
                volume = self._load(instances)
                if begun:
                    useless.set()
                else:
                    explained = beside.submit(self._explain, volume, key_slices, beat_beside)
                    begun.append((volume, explained))
                return volume

            chosen = None
            try:
                chosen = self._select(beat, load).volume
            finally:
                if begun and begun[0][0] is not chosen:
                    useless.set()
            if begun and begun[0][0] is chosen:
                begun[0][1].result()
            return chosen

    def _explain(self, volume: CtVolume, key_slices: int, beat: Beat) -> None:
        inference = self.inference(volume, beat)
        beat()
        keys = self.key_slices(volume, inference, key_slices)
        beat()
        # Also of an exam that turns out negative, and shows none: nobody waits meanwhile.
        self.pictures.draw(volume, keys, LIMIT)
