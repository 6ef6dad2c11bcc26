"""A scripted C-FIND SCP: answers whatever a test wants to see survived."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from pe_triage.deliver.find_scu import STUDY_ROOT_FIND, SYNTAXES
from pe_triage.domain import Destination

Answers = Callable[[Dataset], Iterator[tuple[int | Dataset, Dataset | None]]]


@contextmanager
def finding_scp(
    answer: Answers, *, contexts: tuple[str, ...] = (STUDY_ROOT_FIND,), port: int = 0
) -> Iterator[Destination]:
    """Serve C-FIND on loopback by `answer`, which is given the identifier of each question."""
    ae = AE(ae_title="PACS")
    for sop_class in contexts:
        ae.add_supported_context(sop_class, list(SYNTAXES))
    server = ae.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[(evt.EVT_C_FIND, lambda event: answer(event.identifier))],
    )
    assert server is not None
    try:
        yield Destination(aet="PACS", host="127.0.0.1", port=server.server_address[1])
    finally:
        server.shutdown()


class Archive:
    """Studies as data: Study Instance UID to its attributes, series included."""

    def __init__(self) -> None:
        self.studies: dict[str, dict[str, Any]] = {}
        self.asked: list[Dataset] = []
        self.images: set[str] = set()
        """SOP Instance UIDs: what it answers at IMAGE level."""

    def add(
        self, study_uid: str, *, series: dict[str, tuple[str, int]] | None = None, **attributes: Any
    ) -> None:
        """Hold a study; `series` is series UID to (modality, instances)."""
        self.studies[study_uid] = {"series": series or {}, **attributes}

    def hold(self, files: list[Path]) -> None:
        """Hold these images, by their names (see `tiny_ct`)."""
        self.images.update(file.stem for file in files)

    def __call__(self, wanted: Dataset) -> Iterator[tuple[int | Dataset, Dataset | None]]:
        self.asked.append(wanted)
        for study_uid, study in list(self.studies.items()):
            if wanted.StudyInstanceUID and wanted.StudyInstanceUID != study_uid:
                continue
            days = str(wanted.get("StudyDate", "") or "")
            if days and str(study.get("StudyDate", "")) != days:
                continue
            if wanted.QueryRetrieveLevel == "STUDY":
                ds = Dataset()
                ds.StudyInstanceUID = study_uid
                for keyword, value in study.items():
                    if keyword != "series":
                        setattr(ds, keyword, value)
                yield 0xFF00, ds
                continue
            if wanted.QueryRetrieveLevel == "IMAGE":
                of_series = f"{wanted.SeriesInstanceUID}."
                for uid in sorted(uid for uid in self.images if uid.startswith(of_series)):
                    ds = Dataset()
                    ds.StudyInstanceUID = study_uid
                    ds.SeriesInstanceUID = wanted.SeriesInstanceUID
                    ds.SOPInstanceUID = uid
                    yield 0xFF00, ds
                continue
            for series_uid, (modality, count) in study["series"].items():
                ds = Dataset()
                ds.StudyInstanceUID = study_uid
                ds.SeriesInstanceUID = series_uid
                ds.Modality = modality
                ds.NumberOfSeriesRelatedInstances = count
                yield 0xFF00, ds
        yield 0x0000, None


def tiny_ct(
    folder: Path, study_uid: str, count: int, *, series: int = 1, **attributes: Any
) -> list[Path]:
    """Write `count` CT images of 16 x 16 pixels, which an archive takes as any other."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(1, count + 1):
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = f"{study_uid}.{series}.{number}"
        ds.StudyInstanceUID = study_uid
        ds.SeriesInstanceUID = f"{study_uid}.{series}"
        ds.Modality = "CT"
        ds.InstanceNumber = number
        ds.ImagePositionPatient = [0, 0, number]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing = [1, 1]
        ds.Rows = ds.Columns = 16
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit = 15
        ds.PixelRepresentation = 1
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.PixelData = np.zeros((16, 16), "<i2").tobytes()
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        files.append(folder / f"{study_uid}.{series}.{number}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    return files
