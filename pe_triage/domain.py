"""The values that flow through the node: frozen, keyword-only, free of sockets, files and torch.

Arrays are set read-only when a value is made. Datetimes are aware. Axis legend: ``z`` slices in
anatomical order, foot to head; ``y`` rows, front to back; ``x`` columns, the patient's right to
left. Coordinates are millimetres in the DICOM patient system LPS (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXAM_LABELS: tuple[str, ...] = (
    "negative_exam_for_pe",
    "indeterminate",
    "chronic_pe",
    "acute_and_chronic_pe",
    "central_pe",
    "leftsided_pe",
    "rightsided_pe",
    "rv_lv_ratio_gte_1",
    "rv_lv_ratio_lt_1",
)
"""The nine exam-level labels of RSPECT, in the order of the challenge's submission."""

POSITIVE_LABELS: tuple[str, ...] = EXAM_LABELS[2:]
"""The seven labels that only an exam with PE may carry."""

IMAGE_LABEL = "pe_present_on_image"
"""RSPECT's only image-level label."""

QUALITY_CONTROL_NOTE = "not marked as Quality Control Image (0028,0300)"


class Outcome(StrEnum):
    """The answer for a study. Failure to analyse is never NEGATIVE."""

    POSITIVE = "POSITIVE"
    NEGATIVE = "NEGATIVE"
    INDETERMINATE = "INDETERMINATE"
    NOT_EVALUATED = "NOT_EVALUATED"


class Priority(StrEnum):
    """As Scheduled Procedure Step Priority (0074,1200); never the DIMSE priority."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


class StudyState(StrEnum):
    """Where a study stands. The last four are terminal for a run."""

    RECEIVING = "RECEIVING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    NOT_EVALUATED = "NOT_EVALUATED"
    FAILED = "FAILED"
    QUARANTINED = "QUARANTINED"


TERMINAL_STATES = frozenset(
    {StudyState.DONE, StudyState.NOT_EVALUATED, StudyState.FAILED, StudyState.QUARANTINED}
)


class Decision(StrEnum):
    """The decision served for one label, at the bundle's stored threshold."""

    PRESENT = "PRESENT"
    ABSENT = "ABSENT"
    UNDETERMINED = "UNDETERMINED"


class DeliveryState(StrEnum):
    """Where one object's delivery to one destination stands."""

    PENDING = "PENDING"
    SENT = "SENT"
    WARNING = "WARNING"
    COMMITTED = "COMMITTED"
    PARKED = "PARKED"


class ResultKind(StrEnum):
    """What a result object is."""

    SR = "SR"
    SUMMARY = "SUMMARY"
    HEATMAP = "HEATMAP"
    NARRATIVE = "NARRATIVE"
    KEY_OBJECTS = "KEY_OBJECTS"
    PARAMETRIC_MAP = "PARAMETRIC_MAP"
    HL7 = "HL7"
    FHIR = "FHIR"
    WEBHOOK = "WEBHOOK"
    UPS = "UPS"


class InstanceRole(StrEnum):
    """What a received instance is to its study."""

    IMAGE = "IMAGE"
    """A CT image: part of what a run is about."""
    OTHER = "OTHER"
    """Anything else; a run is about these only where the study has no CT image at all."""
    OWN_RESULT = "OWN_RESULT"
    """A result of this program that came back; never a reason for a run."""


class IntendedUse(StrEnum):
    """What a bundle's card says the weights are for."""

    UNTRAINED = "untrained"
    DEMONSTRATION = "demonstration"
    RESEARCH = "research"
    """Trained on patients' images; a research use that the site takes responsibility for."""


INTENDED_USE_WORDS: Mapping[IntendedUse, str] = {
    IntendedUse.UNTRAINED: "untrained network with random weights; no meaning, no clinical use",
    IntendedUse.DEMONSTRATION: "demonstration on phantoms; no clinical use",
    IntendedUse.RESEARCH: "research weights; not a cleared medical device",
}
"""The sentence that every result repeats."""

NOTICE = "Triage aid: a negative result does not exclude PE."


def _read_only(array: NDArray[Any]) -> None:
    array.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientIdentity:
    """Who an object belongs to, as frozen when the study is queued and checked before delivery.

    `name`, `birth_date` and `sex` are deliberately absent: identity is the identifier and its
    issuer (PS3.3 C.2.2), and the fewer copies of a name exist the fewer can leak.
    """

    patient_id: str
    issuer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A DICOM application entity that objects are sent to."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFacts:
    """What eligibility, completeness and ordering need of one instance's header.

    Decoded once, at indexing, and kept in the database, so that nothing later opens the file
    again to decide. A value that is absent or unreadable in the header is None (or empty);
    multi-valued attributes are tuples. Text is stripped of control characters.
    """

    modality: str | None = None
    image_type: tuple[str, ...] = ()
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    series_description: str | None = None
    study_description: str | None = None
    protocol_name: str | None = None
    body_part: str | None = None
    manufacturer: str | None = None
    model_name: str | None = None
    kernel: tuple[str, ...] = ()
    contrast_agent: str | None = None
    patient_age_years: float | None = None
    quality_control: bool = False
    """Quality Control Image (0028,0300) is YES."""
    frame_of_reference_uid: str | None = None
    number_of_frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    bits_allocated: int | None = None
    bits_stored: int | None = None
    pixel_representation: int | None = None
    samples_per_pixel: int | None = None
    photometric_interpretation: str | None = None
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    """Row spacing, column spacing (0028,0030)."""
    slice_thickness_mm: float | None = None
    image_position_mm: tuple[float, float, float] | None = None
    image_orientation: tuple[float, float, float, float, float, float] | None = None
    patient_position: str | None = None
    gantry_tilt_deg: float | None = None
    acquisition_time_s: float | None = None
    """Seconds of the day at which the slice's data were acquired."""
    kvp: float | None = None
    temporal_position: int | None = None
    lossy_compression: str | None = None
    """Lossy Image Compression (0028,2110): 01 where the pixels were ever compressed with loss."""
    stack_id: str | None = None
    """Which of an Enhanced CT image's stacks the frame belongs to (0020,9056)."""
    acquisition_type: str | None = None
    """SEQUENCED, SPIRAL, CONSTANT_ANGLE, STATIONARY, FREE (0018,9302)."""
    calculation: str | None = None
    """Volume Based Calculation Technique (0008,9207); NONE where nothing was computed."""
    concatenation_uid: str | None = None
    """Shared by the parts of a multi-frame image that was split (PS3.3 C.7.6.16.2.2.4)."""
    concatenation_number: int | None = None
    concatenation_total: int | None = None
    frames: tuple[FrameFacts, ...] = ()
    """What differs from frame to frame of an Enhanced CT image; see `pe_triage.frames`."""
    frames_problem: str | None = None
    """Why an Enhanced CT image's frames cannot be told, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFacts:
    """What one frame of a multi-frame image says of itself, under the names of `InstanceFacts`.

    None or empty: as the image says for all its frames.
    """

    image_type: tuple[str, ...] = ()
    acquisition_number: int | None = None
    body_part: str | None = None
    kernel: tuple[str, ...] = ()
    contrast_agent: str | None = None
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    slice_thickness_mm: float | None = None
    image_position_mm: tuple[float, float, float] | None = None
    image_orientation: tuple[float, float, float, float, float, float] | None = None
    gantry_tilt_deg: float | None = None
    acquisition_time_s: float | None = None
    kvp: float | None = None
    temporal_position: int | None = None
    stack_id: str | None = None
    acquisition_type: str | None = None
    calculation: str | None = None


def image_id(sop_instance_uid: str, frame: int | None) -> str:
    """Name one image: an instance, or a frame (from 1) of a multi-frame instance."""
    return sop_instance_uid if frame is None else f"{sop_instance_uid}#{frame}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedInstance:
    """One instance that this node holds, as indexed from the spool."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    identity: PatientIdentity
    sha256: str
    """Hex digest of the encoded data set as received, without file meta information."""
    size_bytes: int
    path: Path
    """Part 10 file that holds it, absolute."""
    received_at: datetime
    calling_aet: str
    facts: InstanceFacts
    role: InstanceRole = InstanceRole.IMAGE
    frame: int | None = None
    """Set where this stands for one frame, counted from 1 (PS3.3 C.7.6.16.1.1.1), of the instance;
    `facts` are then the frame's. Such values are made by `pe_triage.frames` and never stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyManifest:
    """Exactly which objects a job is about; late or changed instances give another digest."""

    study_uid: str
    entries: tuple[tuple[str, str], ...]
    """(SOP Instance UID, SHA-256 of its data set), sorted by UID."""
    digest: str

    @staticmethod
    def of(study_uid: str, instances: Iterable[ReceivedInstance]) -> StudyManifest:
        """Build the manifest of `instances`, whatever their order."""
        entries = tuple(sorted((i.sop_instance_uid, i.sha256) for i in instances))
        hasher = hashlib.sha256(study_uid.encode())
        for uid, sha256 in entries:
            hasher.update(f"\n{uid} {sha256}".encode())
        return StudyManifest(study_uid=study_uid, entries=entries, digest=hasher.hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of one study, as a worker holds it while its lease lasts."""

    job_id: int
    study_uid: str
    run: int
    manifest_digest: str
    attempt: int
    """1 for the first attempt."""
    fencing_token: int
    """Grows with each claim; a finish with an old token is refused."""
    received_at: datetime
    last_image_at: datetime
    dated_at: datetime
    """By which its results are dated, however often and whenever it is worked: of a first run when
    the last of its images came, of a later one when it was queued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CtVolume:
    """A series in anatomical order.

    Attributes
    ----------
    hu_zyx
        int16 Hounsfield units, shape (slices, rows, columns), foot to head, rows front to back,
        columns patient's right to left.
    spacing_mm
        (z, y, x), millimetres, all positive.
    affine_lps
        float64 (4, 4): voxel index (x, y, z, 1) to LPS millimetres.
    sop_instance_uids
        One for each z, in the same order.
    source_flip_yx
        Whether rows and columns were reversed to reach anatomical order, so that a point found
        here can be written in the pixel grid of the source image.
    """

    hu_zyx: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    affine_lps: NDArray[np.float64]
    sop_instance_uids: tuple[str, ...]
    series_uid: str
    quality_control: bool = False
    source_flip_yx: tuple[bool, bool] = (False, False)
    frame_numbers: tuple[int | None, ...] = ()
    """One for each z where the source is multi-frame (None for a single-frame image among them);
    empty where it is not."""
    source_transpose: bool = False
    """Whether the source's rows and columns were exchanged first (a patient lying on the side):
    a point is written back by undoing `source_flip_yx`, then the exchange."""

    def __post_init__(self) -> None:
        _read_only(self.hu_zyx)
        _read_only(self.affine_lps)

    def frame_of(self, z: int) -> int | None:
        """Frame number of slice `z`; None for a single-frame image."""
        return self.frame_numbers[z] if self.frame_numbers else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which weights gave an answer, and what they are for."""

    name: str
    version: str
    sha256: str
    intended_use: IntendedUse
    calibrated: bool = False
    """Whether the card says that the probabilities were calibrated."""

    @property
    def for_patients(self) -> bool:
        """Whether the weights were made with patients' images in mind at all."""
        return self.intended_use not in (IntendedUse.UNTRAINED, IntendedUse.DEMONSTRATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamPrediction:
    """What the network says of one volume; arrays follow the volume's z.

    Attributes
    ----------
    slice_probability_z
        float32 (slices,), probability of PE on each slice, consistent with the exam labels.
    attention_z
        float32 (slices,), non-negative, sums to 1.
    exam_probability
        Label to probability, for all of `EXAM_LABELS`; obeys the RSPECT rules at 0.5.
    pe_probability
        The bundle's probability that the exam shows PE.
    findings
        Label to decision at the bundle's stored thresholds; obeys the label rules too.
    thresholds
        Label to stored threshold, with `IMAGE_LABEL` for slices and "pe" for the exam.
    """

    slice_probability_z: NDArray[np.float32]
    attention_z: NDArray[np.float32]
    exam_probability: Mapping[str, float]
    pe_probability: float
    findings: Mapping[str, Decision]
    thresholds: Mapping[str, float]
    model: ModelIdentity

    def __post_init__(self) -> None:
        _read_only(self.slice_probability_z)
        _read_only(self.attention_z)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySlice:
    """A slice worth looking at first, with the map that says where.

    Attributes
    ----------
    z
        Index into the volume, foot to head.
    heatmap_yx
        float32 Grad-CAM in [0, 1], on a regular grid of cells that covers the whole slice.
    peak_yx
        (row, column) of the map's maximum in voxels of the volume's slice, sub-voxel.
    """

    z: int
    sop_instance_uid: str
    probability: float
    attention: float
    heatmap_yx: NDArray[np.float32]
    peak_yx: tuple[float, float]
    frame: int | None = None
    """Frame number where the instance is multi-frame."""

    def __post_init__(self) -> None:
        _read_only(self.heatmap_yx)

    @property
    def image_id(self) -> str:
        """Name of the source image: `image_id` of its instance and frame."""
        return image_id(self.sop_instance_uid, self.frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriageResult:
    """The answer for one run of one study.

    `prediction` is None when no model ran (NOT_EVALUATED), or when the rule for bundles not made
    for patients withholds what it said.
    """

    outcome: Outcome
    reason: str | None
    priority: Priority | None
    series_uid: str | None
    key_slices: tuple[KeySlice, ...] = ()
    prediction: ExamPrediction | None = None
    model: ModelIdentity | None = None
    sop_instance_uids: tuple[str, ...] = ()
    """Slices of the analysed series, foot to head; empty when none was analysed. The frames of one
    multi-frame instance name it once each."""
    frame_numbers: tuple[int | None, ...] = ()
    """As `CtVolume.frame_numbers`."""
    series_choice: str | None = None
    """Why this series of the study was analysed; None when none was."""
    unlikeness: float | None = None
    """As `VolumeMeasures.unlikeness`; None where a model ran: its bundle could not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """One object to deliver, encoded, under the UID that it keeps whatever happens."""

    kind: ResultKind
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    encoded: bytes = field(repr=False)
    """A whole Part 10 file, explicit VR little endian."""
    label: str = ""
    """Short file-name stem, such as ``sr``, ``summary``, ``heatmap-03``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultMessage:
    """One message to one destination, as it will be sent however often it is tried.

    Attributes
    ----------
    message_id
        Derived from the run and the destination, so that a receiver recognises a repetition.
    body
        What is sent; None where it could not be written.
    refused
        Why not, in a line without patient identity; shown as a parked delivery.
    """

    kind: ResultKind
    destination: str
    message_id: str
    body: bytes | None = field(repr=False)
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSet:
    """All objects of one run, in the order in which they should be sent."""

    study_uid: str
    run: int
    objects: tuple[ResultObject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One object on its way to one destination."""

    delivery_id: int
    study_uid: str
    destination: str
    kind: ResultKind
    sop_class_uid: str | None
    """None for a message."""
    sop_instance_uid: str | None
    path: Path
    state: DeliveryState
    attempts: int
    last_error: str | None = None
    sha256: str | None = None
    """Of the file, as persisted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merit:
    """One reason for preferring a series among eligible ones."""

    name: str
    score: float
    """Higher is better; compared between series only under the same name."""
    words: str
    """What was found, such as ``soft kernel B30f``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """When and where the data of a series were acquired, as far as its headers say."""

    frame_of_reference_uid: str | None = None
    numbers: frozenset[int] = frozenset()
    begin_s: float | None = None
    end_s: float | None = None
    """Seconds of the day of the first and the last slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EligibilityVerdict:
    """Whether one series can be analysed, or which rule refused it and on what value."""

    series_uid: str
    eligible: bool
    rule: str | None
    """Short stable name of the refusing rule, such as ``slice_thickness``."""
    reason: str | None
    """Words a radiographer understands, naming the value found."""
    slices: int
    preference: float = 0.0
    """Among eligible series of one acquisition the highest is analysed."""
    merits: tuple[Merit, ...] = ()
    """What the preference is made of, most important first."""
    acquisition: Acquisition = Acquisition()
    remarks: tuple[str, ...] = ()
    """What was unusual and is corrected exactly, such as identical images that count once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMeasures:
    """What pixel rules judge, measured once from a volume; all in Hounsfield units.

    Attributes
    ----------
    air_hu
        Median of the air (lowest plausible peak: outside the body, or the trachea); None where
        none was found.
    vessel_hu
        Robust high level (see `imaging.measure`) of the mediastinal vessels; None where the
        mediastinum was not found.
    lung_fraction
        Share of the body's cross-section that is aerated lung, over the slices that hold lung.
    lung_extent_mm
        Head-to-foot extent of the slices that hold lung.
    soft_tissue_hu
        Median level of the body without lung; None where there is no body.
    noise_hu, grain
        Standard deviation of the noise in soft tissue, and its correlation between neighbouring
        pixels (low for lung and bone kernels); None where it cannot be measured.
    slice_jump
        Largest step between neighbouring slices, over the usual one near by.
    alternation
        How much neighbouring slices differ, over how much every second one differs.
    blank_slices, saturated_slices
        Slices that show no body; slices of which a large part is at the upper end of the scale.
    doubling, unevenness
        Signs of motion (see `imaging.motion`): repeated outlines in the lungs, and slices that
        advance unevenly; None where they cannot be measured.
    strangeness, strangest
        How far the figure furthest from a usual chest's lies from it, in usual spreads, and which
        one it is (see `imaging.typical`).
    unlikeness
        How far the network's view of the images lies from the exams that its bundle was calibrated
        on, in units of the bundle's limit; None before it looked, or where the bundle cannot tell.
    """

    air_hu: float | None
    vessel_hu: float | None
    lung_fraction: float
    lung_extent_mm: float
    soft_tissue_hu: float | None = None
    noise_hu: float | None = None
    grain: float | None = None
    slice_jump: float | None = None
    alternation: float | None = None
    blank_slices: int = 0
    saturated_slices: int = 0
    doubling: float | None = None
    unevenness: float | None = None
    strangeness: float | None = None
    strangest: str = ""
    unlikeness: float | None = None
