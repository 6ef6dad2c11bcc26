"""Reads a result back from its structured report, in the words of the `show` document.

An importer for others too: it goes by codes alone, so a report that other software has rewritten
(other text, other order of groups) still reads the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code

from pe_triage.domain import EXAM_LABELS, Outcome
from pe_triage.errors import InputError
from pe_triage.report import concepts as c

_LABEL_OF_CODE = {concept.code.value: label for label, concept in c.LABEL_CONCEPTS.items()}
_DECISION_OF_CODE = {code.value: decision for decision, code in c.PRESENCE_CODES.items()}
_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
_LIBRARY = Code("111028", "DCM", "Image Library")
_POSITION_Z = Code("110903", "DCM", "Image Position (Patient) Z")


def read_sr(path: Path | str) -> dict[str, Any]:
    """Return what a report of this program says.

    Returns
    -------
    dict
        The keys of the `show` document that a report can know: ``study_uid``, ``state``,
        ``outcome``, ``reason``, ``priority``, ``series_uid``, ``instances``, ``run``, ``exam``,
        ``pe_probability``, ``findings``, ``slices`` (the key slices, foot to head, each with
        ``frame`` where the image is multi-frame, and ``point`` besides: column and row in the
        source image, and ``outline``, a list of such pairs; or None), ``model``, ``results``
        (the report itself); and ``series_choice``, ``unlikeness`` (None where it was
        not checked), ``notice``, ``intended_use``, ``thresholds``, ``policy``,
        ``priority_code``, ``certainty_percent`` (None where the scores are not calibrated),
        ``codes`` (findings and site of each label), ``device_uid``, ``evidence`` (all images
        referenced), ``requests``, ``predecessors``. Numbers equal those written bit for bit.

    Raises
    ------
    InputError
        If the file is not DICOM, or not a report of this program.
    """
    path = Path(path)
    try:
        ds = pydicom.dcmread(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (InvalidDicomError, EOFError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a DICOM file") from error
    groups = _groups(ds)
    exam = groups.get(c.EXAM.value, [])
    if not exam:
        raise InputError(f"{path} is not a structured report of pe-triage")
    try:
        return _document(ds, groups, exam[0], path)
    except (KeyError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise InputError(f"{path}: the report is incomplete") from error


def _document(
    ds: Dataset, groups: dict[str, list[Dataset]], exam: Dataset, path: Path
) -> dict[str, Any]:
    parameters = _parameters(exam)
    outcome = Outcome(_code(exam, c.OUTCOME))
    priority = _code(exam, c.PRIORITY_ASSIGNED)
    labels = {
        label: group[0] for code, group in groups.items() if (label := _LABEL_OF_CODE.get(code))
    }
    slices = [_slice(group) for group in groups.get(c.KEY_SLICE.value, [])]
    outlines = dict(_outline(group) for group in groups.get(c.HEATMAP_OUTLINE.value, []))
    for entry in slices:
        entry["outline"] = outlines.get((entry["sop_instance_uid"], entry.get("frame")))
    order = {uid: index for index, uid in enumerate(_evidence(ds))}
    heights_mm = _heights_mm(ds)
    slices.sort(
        key=lambda s: (
            order.get(s["sop_instance_uid"], len(order)),
            # Frames of one instance: by where the image library says that they lie.
            heights_mm.get((s["sop_instance_uid"], s.get("frame")), 0.0),
        )
    )
    not_evaluated = outcome is Outcome.NOT_EVALUATED
    return {
        "study_uid": str(ds.StudyInstanceUID),
        "state": "NOT_EVALUATED" if not_evaluated else "DONE",
        "outcome": outcome.value,
        "reason": _text(exam, c.REASON),
        "priority": None if priority == c.PRIORITY_CODES[None].value else priority,
        "series_uid": parameters.get("series_uid"),
        "instances": int(parameters["instances"]),
        "run": int(parameters["run"]),
        "exam": {label: _number(labels[label], c.LABEL_SCORE) for label in EXAM_LABELS}
        if labels
        else None,
        "pe_probability": _number(exam, c.EXAM_SCORE) if labels else None,
        "findings": {label: _decision(labels[label]) for label in EXAM_LABELS} if labels else None,
        "slices": slices,
        "model": _model(exam, parameters),
        "results": [
            {
                "kind": "SR",
                "sop_class_uid": str(ds.SOPClassUID),
                "sop_instance_uid": str(ds.SOPInstanceUID),
                "path": str(path.absolute()),
                "deliveries": [],
            }
        ],
        "series_choice": _text(exam, c.SERIES_CHOICE),
        "unlikeness": _unlikeness(parameters.get("unlikeness")),
        "notice": _text(exam, c.NOTICE),
        "thresholds": {
            key.removeprefix("threshold "): float(value)
            for key, value in parameters.items()
            if key.startswith("threshold ")
        },
        "predecessors": _predecessors(ds),
        "policy": {"name": parameters["policy"], "rules": _policy_rules(exam)},
        "priority_code": _coded(exam, c.PRIORITY),
        "certainty_percent": {
            "pe": _number(exam, c.CERTAINTY),
            **{label: _number(labels[label], c.CERTAINTY) for label in EXAM_LABELS},
        }
        if labels and next(_named(exam, c.CERTAINTY), None) is not None
        else None,
        "codes": {label: _label_codes(labels[label]) for label in EXAM_LABELS} if labels else None,
        "intended_use": _text(exam, c.INTENDED_USE),
        "device_uid": _device_uid(ds),
        "evidence": _evidence(ds),
        "requests": [
            {
                "accession_number": str(item.get("AccessionNumber") or ""),
                "requested_procedure_id": str(item.get("RequestedProcedureID") or ""),
            }
            for item in ds.get("ReferencedRequestSequence") or ()
        ],
    }


def _policy_rules(exam: Dataset) -> list[str]:
    lines = (str(item.TextValue) for item in _named(exam, c.ALGORITHM_PARAMETERS))
    return [line.removeprefix(c.POLICY_RULE) for line in lines if line.startswith(c.POLICY_RULE)]


def _coded(group: Dataset, name: Code) -> dict[str, str] | None:
    return next((_code_document(i.ConceptCodeSequence[0]) for i in _named(group, name)), None)


def _code_document(code: Dataset) -> dict[str, str]:
    return {
        "value": str(code.CodeValue),
        "scheme": str(code.CodingSchemeDesignator),
        "meaning": str(code.CodeMeaning),
    }


def _label_codes(group: Dataset) -> dict[str, Any]:
    findings = [
        _code_document(item.ConceptCodeSequence[0])
        for name in (c.FINDING, c.ALSO)
        for item in _named(group, name)
    ]
    return {"findings": findings, "site": _coded(group, c.FINDING_SITE)}


def _device_uid(ds: Dataset) -> str | None:
    for item in ds.get("ContributingEquipmentSequence") or ():
        if item.get("DeviceUID"):
            return str(item.DeviceUID)
    return None


def _groups(ds: Dataset) -> dict[str, list[Dataset]]:
    """Return the measurement groups by the private code of what they assess."""
    found: dict[str, list[Dataset]] = {}
    for container in _named(ds, _MEASUREMENTS):
        for group in container.get("ContentSequence") or ():
            for item in _named(group, c.LABEL):
                code = item.ConceptCodeSequence[0]
                if code.CodingSchemeDesignator == c.SCHEME:
                    found.setdefault(code.CodeValue, []).append(group)
    return found


def _named(parent: Dataset, name: Code) -> Iterator[Dataset]:
    for item in parent.get("ContentSequence") or ():
        for concept in item.get("ConceptNameCodeSequence") or ():
            same = (concept.get("CodeValue"), concept.get("CodingSchemeDesignator"))
            if same == (name.value, name.scheme_designator):
                yield item


def _code(group: Dataset, name: Code) -> str:
    return str(next(_named(group, name)).ConceptCodeSequence[0].CodeValue)


def _text(group: Dataset, name: Code) -> str | None:
    return next((str(item.TextValue) for item in _named(group, name)), None)


def _number(group: Dataset, name: Code) -> float:
    value = next(_named(group, name)).MeasuredValueSequence[0]
    return float(value.get("FloatingPointValue", value.NumericValue))


def _decision(group: Dataset) -> str:
    return _DECISION_OF_CODE[_code(group, c.PRESENCE)].value


def _parameters(group: Dataset) -> dict[str, str]:
    lines = (str(item.TextValue) for item in _named(group, c.ALGORITHM_PARAMETERS))
    return {key: value for key, found, value in (line.partition("=") for line in lines) if found}


def _unlikeness(value: str | None) -> float | None:
    """Read the number, or None where the report says that nothing could be told."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _model(group: Dataset, parameters: dict[str, str]) -> dict[str, str] | None:
    if "weights_sha256" not in parameters:
        return None
    return {
        "name": _text(group, c.ALGORITHM_NAME) or "",
        "version": _text(group, c.ALGORITHM_VERSION) or "",
        "sha256": parameters["weights_sha256"],
        "intended_use": parameters["intended_use"],
    }


def _region(group: Dataset) -> Dataset | None:
    return next((i for i in group.ContentSequence if i.ValueType == "SCOORD"), None)


def _image(holder: Dataset) -> tuple[str, int | None]:
    """Return instance and frame of the image that a group or region names."""
    return _named_image(next(i for i in holder.ContentSequence if i.ValueType == "IMAGE"))


def _named_image(item: Dataset) -> tuple[str, int | None]:
    reference = item.ReferencedSOPSequence[0]
    frame = reference.get("ReferencedFrameNumber")
    return str(reference.ReferencedSOPInstanceUID), None if frame is None else int(frame)


def _heights_mm(ds: Dataset) -> dict[tuple[str, int | None], float]:
    """Return Image Position (Patient) z of each entry of the image library."""
    found = {}
    for library in _named(ds, _LIBRARY):
        for group in library.get("ContentSequence") or ():
            for entry in group.get("ContentSequence") or ():
                if entry.ValueType == "IMAGE" and next(_named(entry, _POSITION_Z), None):
                    found[_named_image(entry)] = _number(entry, _POSITION_Z)
    return found


def _outline(group: Dataset) -> tuple[tuple[str, int | None], list[list[float]]]:
    region = _region(group)
    if region is None:
        raise ValueError("an outline without coordinates")
    values = [float(v) for v in region.GraphicData]
    return _image(region), [list(pair) for pair in zip(values[::2], values[1::2], strict=True)]


def _slice(group: Dataset) -> dict[str, Any]:
    region = _region(group)
    uid, frame = _image(group if region is None else region)
    return {
        "sop_instance_uid": uid,
        **({} if frame is None else {"frame": frame}),
        "probability": _number(group, c.SLICE_SCORE),
        "attention": _number(group, c.ATTENTION),
        "certainty_percent": next(
            (_number(group, c.CERTAINTY) for _ in _named(group, c.CERTAINTY)), None
        ),
        "point": [float(v) for v in region.GraphicData] if region is not None else None,
    }


def _evidence(ds: Dataset) -> list[str]:
    return [
        str(instance.ReferencedSOPInstanceUID)
        for study in ds.get("CurrentRequestedProcedureEvidenceSequence") or ()
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


def _predecessors(ds: Dataset) -> list[str]:
    return [
        str(instance.ReferencedSOPInstanceUID)
        for study in ds.get("PredecessorDocumentsSequence") or ()
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]
