"""The slow steps of one study's analysis, each done at most once.

A run makes its own. What an idle worker has done before its study was known to be complete
(`node.ahead`) is handed to the run as one of these, if it was made of the very same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import Dataset

from pe_triage.assemble.eligibility import EligibilityRules
from pe_triage.domain import CtVolume, KeySlice, ReceivedInstance
from pe_triage.node.selection import Selection, select_volume
from pe_triage.node.source_headers import read_header
from pe_triage.report.heatmap_picture import LIMIT
from pe_triage.report.slices import SlicePictures

if TYPE_CHECKING:
    from pe_triage.infer.predictor import Inference, Predictor
    from pe_triage.node.analysis import Answer

Beat = Callable[[], None]
"""Called between pieces of long work; what it raises ends the work."""


class StudyWork:
    """Steps of one analysis, and what they gave.

    A step that raises leaves nothing behind. For one thread at a time.

    Parameters
    ----------
    images
        The images that the run is about; their digests say what the files hold.
    headers
        What has been read of them already, by path (`read_header`); more is added.
    """

    def __init__(
        self,
        images: Sequence[ReceivedInstance],
        predictor: Predictor,
        rules: EligibilityRules,
        headers: dict[Path, Dataset] | None = None,
    ) -> None:
        self._images = tuple(images)
        self._predictor = predictor
        self._rules = rules
        self._selection: Selection | None = None
        self._inference: Inference | None = None
        self._key_slices: dict[int, tuple[KeySlice, ...]] = {}
        self._headers = {} if headers is None else headers
        self.pictures = SlicePictures()
        self.answer: Answer | None = None
        """To a question that a run may ask again; see `analysis.prepare_answer`."""

    def is_of(self, images: Sequence[ReceivedInstance]) -> bool:
        """Whether it was made of exactly these images, whatever their order."""
        mine, theirs = ({i.sop_instance_uid: i for i in some} for some in (self._images, images))
        return len(self._images) == len(images) and mine == theirs

    def selection(self, beat: Beat) -> Selection:
        """The series that is analysed, or why there is none; see `select_volume`."""
        if self._selection is None:
            self._selection = select_volume(self._images, self._rules, beat=beat)
        return self._selection

    def inference(self, volume: CtVolume, beat: Beat) -> Inference:
        """The prediction for the volume of `selection`."""
        if self._inference is None:
            self._inference = self._predictor.predict(volume, beat=beat)
        return self._inference

    def key_slices(
        self, volume: CtVolume, inference: Inference, count: int
    ) -> tuple[KeySlice, ...]:
        """`count` key slices of `inference`, explained."""
        from pe_triage.infer.keyslices import key_slices

        if count not in self._key_slices:
            self._key_slices[count] = key_slices(volume, inference, self._predictor, count)
        return self._key_slices[count]

    def header(self, image: ReceivedInstance) -> Dataset:
        """Header of one of the images; whoever changes it changes a copy."""
        if image.path not in self._headers:
            self._headers[image.path] = read_header(image.path)
        return self._headers[image.path]

    def do_everything(self, key_slices: int, beat: Beat) -> None:
        """Do all steps that a run may ask for.

        Raises
        ------
        Exception
            Whatever a step raises: the run that meets it says what it means.
        """
        volume = self.selection(beat).volume
        if volume is None:
            return
        inference = self.inference(volume, beat)
        beat()
        keys = self.key_slices(volume, inference, key_slices)
        beat()
        # Also of an exam that turns out negative, and shows none: nobody waits meanwhile.
        self.pictures.draw(volume, keys, LIMIT)
        beat()
        analysed = set(volume.sop_instance_uids)
        for image in self._images:
            if image.sop_instance_uid in analysed:
                self.header(image)
