"""Print docs/conformance.md from the code itself; a test compares the two.

Usage: PYTHONPATH=. python docs/make_conformance.py > docs/conformance.md

Tables come from what runs: contexts, statuses, codes, settings, and the objects that the report
room builds from an invented study. Only the sentences between them are written here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_description, dictionary_VR
from pydicom.filebase import DicomBytesIO
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pe_triage import commitment
from pe_triage.archive import CommitmentTable
from pe_triage.config import Settings
from pe_triage.deliver import commitment as commitment_scu
from pe_triage.deliver import retrieve_scu
from pe_triage.deliver.acknowledgements import ACKNOWLEDGEMENTS, ERROR_CODES
from pe_triage.deliver import find_scu
from pe_triage.deliver.backoff import FIRST_DELAY_S, GIVE_UP_AFTER_S, MAX_DELAY_S
from pe_triage.deliver.http_statuses import HTTP_RULES
from pe_triage.deliver.requestor import MAX_CONTEXTS, RequestorOptions
from pe_triage.deliver.statuses import STATUS_RULES
from pe_triage.domain import (
    EXAM_LABELS,
    IMAGE_LABEL,
    CtVolume,
    Decision,
    ExamPrediction,
    IntendedUse,
    KeySlice,
    ModelIdentity,
    Outcome,
    PatientIdentity,
    ResultKind,
    TriageResult,
)
from pe_triage.node.commitments import BATCH, LONGEST_SILENCE_S, REMEMBERED_S
from pe_triage.receive import commitments as commitment_scp
from pe_triage.receive import part10, storing, upper_layer, validate
from pe_triage.receive.contexts import (
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    VERIFICATION_SYNTAXES,
)
from pe_triage.receive.server import ReceiverOptions
from pe_triage.report import ReportSettings, StudyContext, build_results, make_result, not_evaluated
from pe_triage.report import concepts
from pe_triage.report.headers import CHARACTER_SET, COPIED
from pe_triage.report.part10 import IMPLEMENTATION_VERSION_NAME
from pe_triage.report.uids import CODING_SCHEME_UID, IMPLEMENTATION_CLASS_UID

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
STUDY, SERIES, FRAME = "2.25.1", "2.25.2", "2.25.3"

TYPICAL_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.11.1",
    "1.2.840.10008.5.1.4.1.1.88.11",
    "1.2.840.10008.5.1.4.1.1.88.22",
    "1.2.840.10008.5.1.4.1.1.88.33",
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.59",
    "1.2.840.10008.5.1.4.1.1.88.67",
    "1.2.840.10008.5.1.4.1.1.104.1",
)
"""What a CT sends, shown by name; each is checked to be accepted."""


# ------------------------------------------------------------------ objects to describe


def header(number: int, position_mm: float) -> Dataset:
    """Return an invented CT header."""
    ds = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": f"2.25.4{number:03d}",
        "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "StudyDate": "20260301",
        "StudyTime": "070000", "StudyID": "S1", "AccessionNumber": "A1", "Modality": "CT",
        "StudyDescription": "CTPA", "PatientName": "Doe^Jane", "PatientID": "1",
        "IssuerOfPatientID": "HOSP", "PatientBirthDate": "19500101", "PatientSex": "F",
        "ReferringPhysicianName": "", "FrameOfReferenceUID": FRAME, "InstanceNumber": number,
        "ImagePositionPatient": [-48.0, -48.0, position_mm], "PixelSpacing": [3.0, 3.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SliceThickness": "2", "Rows": 32,
        "Columns": 32,
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def built_objects() -> dict[ResultKind, list[Dataset]]:
    """Build every kind of object for every kind of answer, and for a re-run."""
    headers = {str(ds.SOPInstanceUID): ds for ds in (header(n, 2.0 * n) for n in range(1, 9))}
    uids = tuple(headers)
    affine = np.diag([3.0, 3.0, 2.0, 1.0])
    affine[:3, 3] = (-48.0, -48.0, 2.0)
    volume = CtVolume(
        hu_zyx=np.zeros((8, 32, 32), np.int16), spacing_mm=(2.0, 3.0, 3.0), affine_lps=affine,
        sop_instance_uids=uids, series_uid=SERIES, quality_control=True,
    )  # fmt: skip
    heat = np.zeros((8, 8), np.float32)
    heat[3:5, 2:4] = 1.0
    key = KeySlice(
        z=4, sop_instance_uid=uids[4], probability=0.9, attention=0.3, heatmap_yx=heat,
        peak_yx=(15.0, 11.0),
    )  # fmt: skip
    settings = ReportSettings(
        narrative=True, key_objects=True, parametric_map=True, institution_name="Hospital",
        station_name="PETRIAGE",
    )  # fmt: skip
    positive = answer(uids, "central_pe", key)
    answers = [
        positive,
        answer(uids, "negative_exam_for_pe", key),
        answer(uids, "indeterminate", key),
        not_evaluated("slice thickness 8 mm is above 3 mm", series_uid=SERIES),
    ]
    found: dict[ResultKind, list[Dataset]] = {}

    def build(result: TriageResult, run: int, predecessors: Sequence[Dataset]) -> list[Dataset]:
        study = StudyContext(
            study_uid=STUDY, run=run, manifest_digest="ab" * 32,
            identity=PatientIdentity(patient_id="1", issuer="HOSP"),
        )  # fmt: skip
        results = build_results(
            result=result, study=study, volume=volume, headers=headers,
            predecessors=predecessors, now=NOW, settings=settings,
        )  # fmt: skip
        datasets = []
        for item in results.objects:
            ds = dcmread(DicomBytesIO(item.encoded))
            found.setdefault(item.kind, []).append(ds)
            datasets.append(ds)
        return datasets

    first = [build(result, 1, ()) for result in answers][0]
    build(positive, 2, first[:1])
    return found


def answer(uids: tuple[str, ...], present: str, key: KeySlice) -> TriageResult:
    """Return the answer in which one label is present."""
    exam = dict.fromkeys(EXAM_LABELS, 0.1) | {present: 0.9}
    prediction = ExamPrediction(
        slice_probability_z=np.full(8, 0.2, np.float32),
        attention_z=np.full(8, 0.125, np.float32),
        exam_probability=exam,
        pe_probability=0.9 if present == "central_pe" else 0.1,
        findings={k: Decision.PRESENT if k == present else Decision.ABSENT for k in exam},
        thresholds=dict.fromkeys(EXAM_LABELS, 0.5) | {"pe": 0.5, IMAGE_LABEL: 0.5},
        model=ModelIdentity(
            name="model", version="1", sha256="cd" * 32, intended_use=IntendedUse.RESEARCH,
            calibrated=True,
        ),
    )  # fmt: skip
    return make_result(
        prediction, series_uid=SERIES, sop_instance_uids=uids, quality_control=True,
        key_slices=(key,),
    )  # fmt: skip


# ------------------------------------------------------------------ tables


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def uid_rows(uids: Iterable[str]) -> list[tuple[str, str]]:
    """Name and UID."""
    return [(UID(uid).name, f"`{uid}`") for uid in uids]


def attribute_table(datasets: Sequence[Dataset]) -> str:
    """Every top-level attribute of one kind of object, and whether each object has it."""
    count = len(datasets)
    tags = sorted({element.tag for ds in datasets for element in ds})
    rows = []
    for tag in tags:
        having = [ds for ds in datasets if tag in ds]
        empty = [ds for ds in having if ds[tag].is_empty]
        presence = "ALWAYS" if len(having) == count else "VNAP"
        presence = "EMPTY" if len(empty) == len(having) else presence
        number = Tag(tag)
        name = dictionary_description(number)
        source = "image" if having[0][tag].keyword in COPIED else "generated"
        rows.append(
            (name, f"({number.group:04X},{number.element:04X})", dictionary_VR(number), presence,
             source)
        )  # fmt: skip
    return table(("attribute", "tag", "VR", "presence", "source"), rows)


def code_rows(codes: Iterable[Any]) -> list[tuple[str, str, str]]:
    """Value, scheme, meaning, each code once."""
    seen: dict[tuple[str, str], tuple[str, str, str]] = {}
    for code in codes:
        key = (code.scheme_designator, code.value)
        seen.setdefault(key, (f"`{code.value}`", code.scheme_designator, code.meaning))
    return [seen[key] for key in sorted(seen)]


def all_codes() -> list[Any]:
    """Every code that `concepts` defines, by itself or in a table."""
    found = []
    for name in dir(concepts):
        value = getattr(concepts, name)
        if isinstance(value, type):
            continue
        values = list(value.values()) if hasattr(value, "values") else [value]
        for item in values:
            if hasattr(item, "scheme_designator"):
                found.append(item)
            elif hasattr(item, "findings"):
                found += [item.code, *item.findings, *([item.site] if item.site else [])]
    return found


KIND_WORDS = {
    ResultKind.SR: "Structured report (TID 1500); always",
    ResultKind.NARRATIVE: "Narrative report (TID 2000); by configuration",
    ResultKind.SUMMARY: "Summary capture; always",
    ResultKind.HEATMAP: "Heatmap capture, one for each key slice; positive and shown indeterminate",
    ResultKind.KEY_OBJECTS: "Key object selection of the key slices; by configuration",
    ResultKind.PARAMETRIC_MAP: "Grad-CAM values of the key slices; by configuration",
}

AIR = (
    (
        "Results as Comprehensive 3D SR with TID 1500 as its root template",
        "MONAI Deploy App SDK's source, on AIR Rev. 1.1",
        "met: `SR` is that; also read by PixelMed's validator and dsrdump",
        "tests/unit/report/test_sr.py: `test_what_is_known_of_ihe_air_is_met_by_every_report`, "
        "`test_highdicom_reads_every_report`; test_validators.py: "
        "`test_every_object_of_every_outcome` (long), `test_dsrdump_renders_the_report`",
    ),
    (
        "Procedure Reported (121058, DCM) names the imaging procedure, not the algorithm",
        "same",
        "met: 25045-6 LN, which names a CT but no body region; a site can configure a closer code, "
        "such as 36147-7 LN, which PixelMed's validator of 2022 does not know",
        "tests/unit/report/test_sr.py: `test_what_is_known_of_ihe_air_is_met_by_every_report`; test_validators.py: "
        "`test_pixelmed_finds_an_error_where_there_is_one` (long)",
    ),
    (
        "Each algorithm in Contributing Equipment Sequence (0018,A001): purpose, Manufacturer, "
        "Manufacturer's Model Name, Software Versions, Device UID (AIR 6.5.3.1)",
        "same; it quotes a placeholder of Rev. 1.1 as code of the purpose",
        "met as to the attributes; the purpose is coded 109102 DCM, Processing Equipment, in "
        "place of the placeholder; where no network ran, the program itself is named",
        "tests/unit/report/test_sr.py: `test_what_is_known_of_ihe_air_is_met_by_every_report`",
    ),
    (
        "Device UID changes each time a model is modified, for example by training",
        "same",
        "met: derived from the digest of the weights and the program's version",
        "tests/unit/report/test_sr.py: `test_device_uid_changes_with_the_weights`",
    ),
    (
        "Not attested by a person: Verification Flag UNVERIFIED",
        "same",
        "met; also PRELIMINARY",
        "tests/unit/report/test_sr.py: `test_what_is_known_of_ihe_air_is_met_by_every_report`, "
        "`test_highdicom_reads_every_report`",
    ),
    (
        "Sample SRs validate in PixelMed without errors (Connectathon preparation)",
        "Gazelle, AIR sample exchange page",
        "met by the coded report and the key object selection, for every outcome and a re-run, on "
        "headers of a phantom and of six real images: no error (warnings: content items of our own "
        "that the templates do not list). The narrative: none under the title and section codes "
        "that the validator of 2022 knows; its own are newer",
        "tests/unit/report/test_validators.py: `test_every_object_of_every_outcome`, "
        "`test_pixelmed_finds_no_error` (long)",
    ),
    (
        "Primitives an Evidence Creator may encode: qualitative findings, measurements, locations, "
        "regions, parametric maps, tracking identifiers, image references",
        "Gazelle, AIR_EC_Capabilities",
        "encoded: qualitative findings, measurements (scores, certainty), locations (peak), "
        "regions (outline), parametric map (by configuration), tracking identifiers, image "
        "references. Not: segmentations",
        "tests/unit/report/test_sr.py: `test_every_number_code_and_reference_is_read_back_equal`, "
        "`test_highdicom_reads_every_report`; test_optional_objects.py: "
        "`test_the_map_holds_the_heatmaps_on_their_slices`",
    ),
    (
        "A narrative description of the implementation accompanies the samples",
        "Gazelle, AIR_EC_Capabilities",
        "partly: this document; none was submitted anywhere",
        "—",
    ),
    (
        "Instance level query keys of analysis results (RAD-137) at the archive",
        "dcm4chee-arc-light, issue 3933",
        "not ours: an archive's part",
        "—",
    ),
    (
        "Presentation by an Image Display",
        "IHE wiki, AI Results",
        "not ours: a viewer's part; what viewers show is in viewers.md",
        "tests/viewers",
    ),
)


def document() -> str:
    """Return the whole statement."""
    for uid in TYPICAL_CLASSES:
        assert uid in STORAGE_CLASSES, uid
    objects = built_objects()
    classes = {kind: str(found[0].SOPClassUID) for kind, found in objects.items()}
    sent_syntaxes = [str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)]
    receiver = Settings.model_fields
    requestor = RequestorOptions()
    options = ReceiverOptions.__dataclass_fields__
    delivered = table(
        ("SOP class", "UID", "object"),
        [(UID(classes[k]).name, f"`{classes[k]}`", KIND_WORDS[k]) for k in KIND_WORDS],
    )
    syntaxes = table(("transfer syntax", "UID"), uid_rows(TRANSFER_SYNTAXES))
    refusals = table(
        ("status", "when"),
        [
            (f"{storing.SUCCESS:04X}", "the instance is durable on this node's storage"),
            (f"{storing.OUT_OF_RESOURCES:04X}", "it could not be made durable, or space is short"),
            (f"{upper_layer.SOP_CLASS_NOT_SUPPORTED:04X}", "the message is no C-STORE of a class "
             "negotiated in its context"),
            (f"{validate.STATUS_MISMATCH:04X}", "a UID in the data set differs from the command's"),
            (f"{validate.STATUS_CANNOT_UNDERSTAND:04X}", "the data set is truncated, malformed, "
             "too deep, or its pixel data is not what its description says"),
            (f"{storing.PROCESSING_FAILURE:04X}", "a failure of this program's own"),
        ],
    )  # fmt: skip
    statuses = table(
        ("status", "taken as", "shown as"),
        [
            (
                f"{rule.first:04X}" if rule.first == rule.last
                else f"{rule.first:04X}–{rule.last:04X}",
                rule.verdict.value,
                rule.words,
            )
            for rule in STATUS_RULES
        ],
    )  # fmt: skip
    iods = "\n\n".join(
        f"#### {KIND_WORDS[kind].split(';')[0]} ({UID(classes[kind]).name})\n\n"
        f"{attribute_table(objects[kind])}"
        for kind in KIND_WORDS
    )
    acknowledgements = table(
        ("MSA-1", "taken as", "words"),
        [(f"`{c}`", r.verdict.value, r.words) for c, r in ACKNOWLEDGEMENTS.items()],
    )
    error_codes = table(
        ("ERR-3", "taken as", "words"),
        [(f"`{c}`", r.verdict.value, r.words) for c, r in ERROR_CODES.items()],
    )
    http = table(
        ("HTTP status", "taken as", "words"),
        [
            (r.first if r.first == r.last else f"{r.first}–{r.last}", r.verdict.value, r.words)
            for r in HTTP_RULES
        ],
    )
    settings = ReportSettings()
    archive = CommitmentTable.model_fields
    return f"""# DICOM conformance statement

Written by `docs/make_conformance.py` from the code; a test fails when the two differ. Structured
after PS3.2 Annex A. It states what this version does; it claims no IHE badge and no certification.

## A.0 Cover

pe-triage {settings.software_version}, manufacturer "{settings.manufacturer}", research software.

## A.1 Overview

A node that receives CT studies, analyses CT pulmonary angiography and sends results back into the
same study.

{table(("network service", "SCU", "SCP"), [
    ("Verification", "yes (`pe-triage echo`)", "yes"),
    ("Storage", "yes (results)", "yes (every Storage SOP class)"),
    ("Query/Retrieve: FIND, Study Root", "yes, by configuration", "no"),
    ("Query/Retrieve: MOVE and GET, Study Root", "yes, by configuration", "no"),
    ("Storage Commitment Push Model", "yes, by configuration", "yes, by configuration"),
    ("Worklist, MPPS", "no", "no"),
    ("UPS-RS (PS3.18 Section 11)", "user agent, by configuration", "no"),
    ("Media interchange", "no", "no"),
])}

## A.2 Introduction

Audience: engineers who connect the node. Requests and results of other kinds (HL7, FHIR, webhook)
are in [integration.md](integration.md); settings in [configuration.md](configuration.md).

## A.3 Terms

*Run*: one analysis of one set of instances of a study. A later slice, or `reprocess`, makes a new
run, whose report names the earlier one as its predecessor. Verdicts of tables below: SENT and
WARNING end a delivery well, RETRY tries it again, PARK leaves it where `pe-triage show` says why.

## A.4 Networking

### A.4.1 Implementation model

One application entity, AE title `{receiver["aet"].default}` by default. *Receive*: instances are
taken in and kept. *Analyse*: a study that is complete is analysed. *Deliver*: the results of a run
go to each configured destination, most urgent first, in the order in which they were made.

### A.4.2 AE specification

#### A.4.2.1 SOP classes

As SCP: Verification (`{VERIFICATION}`) and every Storage SOP class of PS3.4 Table B.5-1, retired
and private ones too, except protocols and inventories, which belong to no study. Among them:

{table(("SOP class", "UID"), uid_rows(TYPICAL_CLASSES))}

Only CT images are analysed: CT, Enhanced CT and Legacy Converted Enhanced CT Image Storage, the
frames of a multi-frame image like so many single ones. Those that were compressed with loss end
NOT_EVALUATED unless `eligibility.allow_lossy` is set. All else is kept; a study that holds no CT
image at all ends NOT_EVALUATED with that reason, and our own results that come back start nothing.

As SCU: Verification, and

{delivered}

#### A.4.2.2 Association policies

{table(("policy", "value"), [
    ("application context", "`1.2.840.10008.3.1.1.1`"),
    ("maximum PDU announced", f"{options['max_pdu_length'].default} bytes"),
    ("associations at once, for each receiver process",
     receiver["max_associations"].default),
    ("asynchronous operations window", "not negotiated"),
    ("Implementation Class UID, received files and association",
     f"`{part10.IMPLEMENTATION_CLASS_UID}`"),
    ("Implementation Class UID, files of results", f"`{IMPLEMENTATION_CLASS_UID}`"),
    ("Implementation Version Name, results", f"`{IMPLEMENTATION_VERSION_NAME}`"),
    ("silence after which an association is aborted",
     f"{receiver['network_timeout_s'].default:g} s"),
    ("least rate of an object in transfer", f"{options['min_bytes_per_s'].default:g} bytes/s"),
    ("largest object", f"{options['max_object_bytes'].default} bytes"),
])}

#### A.4.2.3 Association acceptance: Verification and Storage

Called and calling AE title and the peer's address are checked (A.7). Proposed contexts are answered
with the first of these that was proposed; Verification with the first {len(VERIFICATION_SYNTAXES)}:

{syntaxes}

Any other transfer syntax is refused for its context alone, with result 4 (transfer syntaxes not
supported), so that a sender falls back on one of these: Deflated Explicit VR (1 MiB of it can hold
2 GiB) and High-Throughput JPEG 2000 (`1.2.840.10008.1.2.4.201` to `.203`), which this version does
not decode, among them. Behaviour is Level 2 (Full) as to attributes: data sets are kept
byte for byte; no coercion. Success is answered only after the instance is durable. The same bytes
sent again are acknowledged and kept once; other bytes under a SOP Instance UID that is held, or a
study under another patient, are acknowledged, set aside and shown (`pe-triage quarantine list`).

{refusals}

#### A.4.2.4 Association initiation: delivery of results

One association for a batch of objects to one destination; at most {MAX_CONTEXTS} contexts, one for
each SOP class and transfer syntax, so that each is accepted or refused alone:

{table(("transfer syntax", "UID"), uid_rows(sent_syntaxes))}

What a destination does not accept is parked with words, and the rest goes. Priority of the C-STORE
is LOW (2); the triage priority is in the objects. Time-outs: {requestor.connect_timeout_s:g} s to
connect, {requestor.acse_timeout_s:g} s for an association, {requestor.dimse_timeout_s:g} s for a
response. What is to be retried waits {FIRST_DELAY_S:g} s, doubling to {MAX_DELAY_S:g} s, for
{GIVE_UP_AFTER_S / 86400:g} days, and is parked then. Before each object is sent, its study and
patient are compared with those that were frozen when the study was queued.

{statuses}

Any other status: RETRY.

#### A.4.2.5 Association initiation: questions to an archive

Only with `query.pacs` in the configuration. One association for each question, one context: Study
Root Query/Retrieve Information Model – FIND (`{find_scu.STUDY_ROOT_FIND}`), proposed with Explicit
and Implicit VR Little Endian; no extended negotiation, no relational queries, no fuzzy matching.
Asked are: one study (its UID; how many images it has, whose it is), its series, and the studies of
a day (Study Date, Modalities in Study). Return keys at STUDY level:
{", ".join(f"`{k}`" for k in find_scu.STUDY_KEYS)}; at SERIES level:
{", ".join(f"`{k}`" for k in find_scu.SERIES_KEYS)}. Where a series' number of instances is left
out, its instances are asked for (IMAGE level) and counted. Matches of other studies than the one
asked for are not believed. Time-out {find_scu.QueryOptions().timeout_s:g} s at each step,
{find_scu.QueryOptions().total_s:g} s in all, at most {find_scu.QueryOptions().max_matches} matches.
Tested against DCMTK's dcmqrscp and Orthanc.

{table(("status that ends a C-FIND", "asked again later", "words"), [
    (
        f"{r.first:04X}" if r.first == r.last else f"{r.first:04X}–{r.last:04X}",
        "yes" if r.again else "no",
        r.words,
    )
    for r in find_scu.FIND_RULES
])}

#### A.4.2.6 UPS-RS user agent

By configuration (`type = "ups"`): Create Workitem (POST), Change Workitem State (PUT), Update
Workitem (POST), Retrieve Workitem (GET) after a conflict; media type `application/dicom+json`.
Scheduled Procedure Step Priority (0074,1200) is the triage priority; LOW where there is none.
Before a reading task is created, Search (GET) by StudyInstanceUID,
ReferencedRequestSequence.StudyInstanceUID and, where known, ReferencedRequestSequence.AccessionNumber;
what is found is retrieved. One that is SCHEDULED, of the same patient and study, with the workitem
code 110005 DCM gets a higher priority by Update Workitem without a Transaction UID (PS3.4 Section
CC.2.6.2), and none is created. One IN PROGRESS is left alone, and the delivery ends as WARNING.
Tested against a small UPS-RS server of the test suite only: no free one was at hand.

#### A.4.2.7 Storage commitment, as SCU

Only for destinations under `commitment.of`. {table(("", "value"), [
    ("SOP class and instance", f"`{commitment.PUSH_MODEL}`, `{commitment.WELL_KNOWN_INSTANCE}`"),
    ("proposed with", "Explicit and Implicit VR Little Endian; no role selection"),
    ("N-ACTION", f"Action Type ID {commitment.REQUEST_ACTION}; at most {BATCH} instances; a new "
     "Transaction UID each time"),
    ("asked", f"{archive['delay_s'].default:g} s after delivery"),
    ("association kept open for a report on it", f"{archive['linger_s'].default:g} s"),
    ("asked again without a report", f"after {archive['ask_again_s'].default:g} s, doubling to "
     f"{LONGEST_SILENCE_S:g} s"),
    ("no longer asked", f"after {archive['give_up_s'].default / 86400:g} days"),
])}

A report (N-EVENT-REPORT) is taken on the request's association, also where it overtakes the
N-ACTION response, and on an association that the archive opens: there both roles of role selection
are accepted as proposed, and a report on a context without role selection is taken too. The calling
AE title must be that of who was asked, or stand in `commitment.report_aets`. It is answered
{commitment_scp.SUCCESS:04X} once it is durable, also where its transaction UID is unknown (it is
logged then, and changes nothing) or was reported before. Reports of the last
{REMEMBERED_S / 86400:g} days' requests are known. A yes counts whenever it comes. A no counts for the
newest request about an object only:

{table(("Failure Reason (0008,1197)", "what is done", "words"), [
    (f"{reason:04X}", rule.remedy.value, rule.words)
    for reason, rule in commitment.FAILURE_RULES.items()
])}

Any other: {commitment.UNKNOWN_FAILURE.remedy.value}. REDELIVER: the same object is sent again under
the same UID, at most {archive['redeliveries'].default} times, then it is parked. Statuses of
N-ACTION and N-EVENT-REPORT responses, where RETRY and PARK both ask again later:

{table(("status", "taken as", "words"), [
    (f"{r.first:04X}", r.verdict.value, r.words) for r in commitment_scu.COMMITMENT_RULES
])}

#### A.4.2.8 Storage commitment, as SCP

Only for calling AE titles under `commitment.requesters`; for others the context is refused. This
node is no archive: an instance is confirmed only where the PACS under `commitment.archive` has
confirmed it, by C-FIND at IMAGE level (default) or by storage commitment in its turn; never because
this node holds it. The N-ACTION response says that the request is durable; nothing else:

{table(("status", "meaning"), [
    (f"{status:04X}", words) for status, words in commitment_scp.STATUS_WORDS.items()
])}

The PACS is asked until it holds everything, at most {archive['settle_s'].default:g} s. The
N-EVENT-REPORT is always sent on a new association, to the requester's configured address, with role
selection (SCU role 0, SCP role 1); a requester that accepts the context without an answer to it is
reported to all the same. Event Type ID {commitment.ALL_COMMITTED} where all is confirmed, else
{commitment.FAILURES_EXIST} with Failure Reason {commitment.NO_SUCH_INSTANCE:04X} (the PACS does not
have it, or this node never received it), {commitment.CLASS_CONFLICT:04X} (it has another class under
this UID), {commitment.PROCESSING_FAILURE:04X} (the PACS could not be asked),
{commitment.DUPLICATE_TRANSACTION:04X} (the Transaction UID was used for other instances), or the
reason of the PACS' own report. What is not taken is sent again as results are, for
{GIVE_UP_AFTER_S / 86400:g} days. The same request again is answered again. At most
{commitment.MAX_REFERENCES} instances in a request. Tested against Orthanc both ways.

#### A.4.2.9 Retrieval

Only with `retrieve.pacs` or `query.pacs`, when a person asks (`pe-triage reprocess`, `priors`; the
latter first by a C-FIND at STUDY level with Patient ID and Issuer of Patient ID). C-FIND at
STUDY, SERIES and IMAGE level says what there is; then C-MOVE (`{retrieve_scu.STUDY_ROOT_MOVE}`, to
this node's own AE title) or, by configuration, C-GET (`{retrieve_scu.STUDY_ROOT_GET}`, with SCP role
for the storage classes that the C-FIND named), at SERIES level, for the rest of a series at IMAGE
level with a list of at most {retrieve_scu.UIDS_AT_ONCE} UIDs. The study is queued when every
instance that the C-FIND named is here, whatever the final status says. Tested against Orthanc and
DCMTK's dcmqrscp.

{table(("status that ends a retrieval", "taken as", "words"), [
    (
        f"{r.first:04X}" if r.first == r.last else f"{r.first:04X}–{r.last:04X}",
        r.course.value,
        r.words,
    )
    for r in retrieve_scu.RETRIEVE_RULES
])}

### A.4.3 Network interfaces

TCP over IPv4 or IPv6; no physical media. HTTP/1.1 for UPS-RS.

### A.4.4 Configuration

AE titles, addresses and all else by file, environment or flags; [configuration.md](configuration.md).

## A.5 Media interchange

None.

## A.6 Support of character sets

Received data sets keep theirs. Results carry Specific Character Set {CHARACTER_SET}: names and
other text of the image are decoded by its own set and written anew. An identifier that cannot be
decoded stops the result rather than file it under another.

## A.7 Security

DICOM connections of this version are not encrypted. Without a list of callers only loopback is
served; with one, called AE title, calling AE title and address must fit. AE titles are no
authentication. HL7 over MLLP and every HTTP road can use TLS 1.2 or newer with verified
certificates, and mutual TLS. No audit trail messages (PS3.15 Annex A.5) are sent. Logs hold UIDs and
no patient identity.

## A.8 Annexes

### A.8.1 Contents of created objects

Presence: ALWAYS, EMPTY (present without value where the image has none), VNAP (not in every
object). Source: *image* is copied from the analysed images' headers, decoded, never altered. The
tables list what is at the top level of the objects of an invented study, for each answer and a
re-run; optional patient and study attributes that its images lack are copied too where an image has
them: {", ".join(f"`{keyword}`" for keyword in sorted(COPIED))}.

{iods}

### A.8.2 Private attributes

None.

### A.8.3 Coded terminology and templates

Templates: TID 1500, 1501, 1410, 1600 (Image Library), 4019 (Algorithm Identification); TID 2000 for
the narrative; TID 2010 for the key object selection. Private scheme
`{concepts.SCHEME}` ("{concepts.SCHEME_NAME}", `{CODING_SCHEME_UID}`), declared in Coding Scheme
Identification Sequence (0008,0110); a value of it never changes its meaning. The value of Priority
is by configuration.

{table(("code value", "scheme", "meaning"), code_rows(all_codes()))}

### A.8.4 Answers and statuses of the other roads

HL7 v2.5.1 ORU^R01 over MLLP. MSA-1, where no ERR-3 of the next table says more:

{acknowledgements}

{error_codes}

HTTP (FHIR, webhook, UPS-RS; for UPS-RS a 409 or 400 is SENT where the workitem's state shows that
the step was done before). Retry-After is honoured up to an hour:

{http}

## IHE AI Results (AIR): what is known to be asked, and what is done

The profile's text was not at hand. The rows are requirements for which a public source was found;
nothing beyond them is claimed, and no Connectathon was attended.

{table(("requirement", "source", "state", "shown by"), AIR)}
"""


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stdout.write(document())
