"""Measurement groups of the report: the exam, each label, each key slice (TID 1501, TID 1410).

Every group and every number names the algorithm. A probability is written as a plain score from 0
to 1 whatever the bundle; only where the bundle's card says that its probabilities are calibrated
does Certainty of Finding, in percent, stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pe_triage.domain import (
    EXAM_LABELS,
    INTENDED_USE_WORDS,
    NOTICE,
    CtVolume,
    Decision,
    ExamPrediction,
    KeySlice,
    TriageResult,
)
from pe_triage.report import concepts as c
from pe_triage.report.places import has_place, source_outline, source_point, strongest
from pe_triage.report.settings import ReportSettings
from pe_triage.report.source_images import frame_numbers
from pe_triage.report.study import StudyContext
from pe_triage.report.uids import derive_uid

_TRACKED_EXAM = "exam"
"""What is tracked (PS3.16 TID 1501) is the exam's embolism as a whole, so its group, the labels'
and that of the slice where it shows best carry one Tracking Unique Identifier. OHIF (3.13) puts
groups of one identifier together, and opens nothing at all where one is left without a region;
so a key slice whose heatmap points nowhere carries it too."""

_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS

MeasurementGroup: TypeAlias = (
    hd.sr.MeasurementsAndQualitativeEvaluations
    | hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupWriter:
    """Writes the groups of one report."""

    result: TriageResult
    study: StudyContext
    settings: ReportSettings

    def exam(self, images: Sequence[Dataset]) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        """Return the group that answers the question: PE, outcome, priority, reason, notice."""
        result, settings = self.result, self.settings
        evaluations = [
            _evaluation(c.LABEL, c.EXAM),
            _evaluation(c.PRESENCE, c.PRESENCE_CODES[c.OUTCOME_PRESENCE[result.outcome]]),
            _evaluation(c.OUTCOME, c.OUTCOME_CODES[result.outcome]),
            _evaluation(c.PRIORITY_ASSIGNED, c.PRIORITY_CODES[result.priority]),
        ]
        if result.priority is not None:
            evaluations.append(_evaluation(c.PRIORITY, settings.priority_codes[result.priority]))
        if result.prediction is None:
            evaluations.append(_evaluation(c.SHOWN, c.WITHHELD if result.model else c.NOT_RUN))
        prediction = result.prediction
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(_TRACKED_EXAM, "Pulmonary embolism triage"),
            finding_type=c.PULMONARY_EMBOLISM,
            algorithm_id=self._algorithm(full=True),
            measurements=self._scores(c.EXAM_SCORE, prediction, prediction.pe_probability)
            if prediction
            else None,
            qualitative_evaluations=evaluations,
            source_images=[_source(ds) for ds in images] or None,
        )
        texts = [
            (c.REASON, result.reason),
            (c.SERIES_CHOICE, result.series_choice),
            (c.NOTICE, NOTICE),
        ]
        if result.model:
            texts.append((c.INTENDED_USE, INTENDED_USE_WORDS[result.model.intended_use]))
        group[0].ContentSequence.extend(
            hd.sr.TextContentItem(name=name, value=text, relationship_type=_CONTAINS)
            for name, text in texts
            if text
        )
        return group

    def labels(
        self, prediction: ExamPrediction
    ) -> list[hd.sr.MeasurementsAndQualitativeEvaluations]:
        """Return one group for each exam label, whether present, absent or undetermined."""
        return [self._label(prediction, label) for label in EXAM_LABELS]

    def _label(
        self, prediction: ExamPrediction, label: str
    ) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        concept = c.LABEL_CONCEPTS[label]
        decision = prediction.findings.get(label, Decision.UNDETERMINED)
        finding, *more = concept.findings
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(_TRACKED_EXAM, concept.code.meaning),
            finding_type=finding,
            finding_sites=[hd.sr.FindingSite(concept.site)] if concept.site else None,
            algorithm_id=self._algorithm(),
            measurements=self._scores(
                c.LABEL_SCORE, prediction, prediction.exam_probability[label]
            ),
            qualitative_evaluations=[
                _evaluation(c.LABEL, concept.code),
                *(_evaluation(c.ALSO, code) for code in more),
                _evaluation(c.PRESENCE, c.PRESENCE_CODES[decision]),
            ],
        )

    def key_slice(
        self, key: KeySlice, number: int, header: Dataset, volume: CtVolume
    ) -> list[MeasurementGroup]:
        """Return the groups of one key slice: the heatmap's peak as a point, and its outline.

        A heatmap of zeros points nowhere, so its group names the image without a place on it.
        Two groups, since a planar group holds one region (TID 1410); PixelMed's validator also
        takes every group of a report with a single region for a planar one.
        """
        prediction = self.result.prediction
        assert prediction is not None  # key slices come with the prediction
        keys = self.result.key_slices
        alone = has_place(key) and strongest(keys) != number - 1
        role = f"key-slice-{number:02d}" if alone else _TRACKED_EXAM
        words = f"Key slice {number} of {len(keys)}"
        common: dict[str, Any] = {
            "tracking_identifier": self._tracking(role, words),
            "finding_type": c.PULMONARY_EMBOLISM,
            "algorithm_id": self._algorithm(),
            "measurements": [
                *self._scores(c.SLICE_SCORE, prediction, key.probability),
                self._number(c.ATTENTION, key.attention),
            ],
            "qualitative_evaluations": [_evaluation(c.LABEL, c.KEY_SLICE)],
        }
        if not has_place(key):
            return [
                hd.sr.MeasurementsAndQualitativeEvaluations(
                    source_images=[_source(header)], **common
                )
            ]
        point = np.array([source_point(key, volume)])
        return [
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_region=_region(hd.sr.GraphicTypeValues.POINT, point, header), **common
            ),
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_region=_region(
                    hd.sr.GraphicTypeValues.POLYLINE, source_outline(key, volume), header
                ),
                tracking_identifier=self._tracking(role, f"{words}, outline of the heatmap"),
                finding_type=c.PULMONARY_EMBOLISM,
                algorithm_id=self._algorithm(),
                qualitative_evaluations=[_evaluation(c.LABEL, c.HEATMAP_OUTLINE)],
            ),
        ]

    def _scores(
        self, name: Code, prediction: ExamPrediction, value: float
    ) -> list[hd.sr.Measurement]:
        scores = [self._number(name, value)]
        if prediction.model.calibrated:
            scores.append(self._number(c.CERTAINTY, value * 100.0, c.PERCENT))
        return scores

    def _number(self, name: Code, value: float, unit: Code = c.NO_UNITS) -> hd.sr.Measurement:
        # A Python float makes highdicom write Floating Point Value (0040,A161) beside the DS of
        # 16 characters: the double is read back bit for bit.
        return hd.sr.Measurement(
            name=name, value=float(value), unit=unit, algorithm_id=self._algorithm()
        )

    def _tracking(self, role: str, words: str) -> hd.sr.TrackingIdentifier:
        model = self.result.model
        uid = derive_uid(
            self.study.manifest_digest,
            model.sha256 if model else None,
            self.study.run,
            f"tracking/{role}",
        )
        return hd.sr.TrackingIdentifier(uid=uid, identifier=words)

    def _algorithm(self, *, full: bool = False) -> hd.sr.AlgorithmIdentification:
        model = self.result.model
        if model is None:
            name, version, brief = self.settings.model_name, self.settings.software_version, []
        else:
            name, version, brief = model.name, model.version, [f"weights_sha256={model.sha256}"]
        parameters = [*brief, *self._parameters()] if full else brief
        return hd.sr.AlgorithmIdentification(
            name=name,
            version=version,
            parameters=parameters or None,
            family=c.ALGORITHM_FAMILY_AI,
        )

    def _parameters(self) -> list[str]:
        """Return what else determined the answer, as ``key=value`` lines."""
        result, settings = self.result, self.settings
        lines = [f"run={self.study.run}", f"instances={len(set(result.sop_instance_uids))}"]
        if result.series_uid:
            lines.append(f"series_uid={result.series_uid}")
        if result.model:
            lines.append(f"intended_use={result.model.intended_use.value}")
            lines.append(f"calibrated={'yes' if result.model.calibrated else 'no'}")
        if result.prediction:
            lines.append(f"unlikeness={_unlikeness(result.unlikeness)}")
            lines += [
                f"threshold {name}={float(value)!r}"
                for name, value in sorted(result.prediction.thresholds.items())
            ]
        lines.append(f"policy={settings.policy.name}")
        lines += [f"{c.POLICY_RULE}{line}" for line in settings.policy.describe()]
        return lines


def _unlikeness(found: float | None) -> str:
    return "not checked: the bundle holds no reference" if found is None else repr(float(found))


def _region(
    kind: hd.sr.GraphicTypeValues, points: NDArray[np.float64], header: Dataset
) -> hd.sr.ImageRegion:
    return hd.sr.ImageRegion(
        graphic_type=kind,
        graphic_data=points,
        source_image=hd.sr.SourceImageForRegion(
            referenced_sop_class_uid=str(header.SOPClassUID),
            referenced_sop_instance_uid=str(header.SOPInstanceUID),
            referenced_frame_numbers=frame_numbers(header),
        ),
    )


def _evaluation(name: Code, value: Code) -> hd.sr.QualitativeEvaluation:
    return hd.sr.QualitativeEvaluation(name=name, value=value)


def _source(ds: Dataset) -> hd.sr.SourceImageForMeasurementGroup:
    return hd.sr.SourceImageForMeasurementGroup(
        referenced_sop_class_uid=str(ds.SOPClassUID),
        referenced_sop_instance_uid=str(ds.SOPInstanceUID),
        referenced_frame_numbers=frame_numbers(ds),
    )
