"""One study's way from received images to result objects: the same for node and command line.

Every step either produces the next value or says in words why the study cannot be evaluated; an
exception means that the analysis itself failed, which is never an answer about the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pydicom import Dataset, dcmread

from pe_triage.assemble.eligibility import (
    EligibilityRules,
    SeriesChoice,
    choose_series,
    judge_measures,
    judge_series,
)
from pe_triage.destinations import AnyDestination
from pe_triage.domain import (
    CtVolume,
    InstanceRole,
    KeySlice,
    PatientIdentity,
    ReceivedInstance,
    ResultMessage,
    ResultSet,
    StudyManifest,
    TriageResult,
)
from pe_triage.errors import ImagingError, PermanentError
from pe_triage.imaging.measure import measure_volume
from pe_triage.imaging.volume import load_volume
from pe_triage.logs import get_logger
from pe_triage.report.messages import MessageContext, build_messages
from pe_triage.report.policy import decide, make_result, not_evaluated
from pe_triage.report.results import build_results
from pe_triage.report.settings import ReportSettings
from pe_triage.report.study import StudyContext, choose_source

if TYPE_CHECKING:
    from pe_triage.infer.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """What a site may set of the analysis."""

    rules: EligibilityRules
    report: ReportSettings
    key_slices: int = 5
    allow_on_patients: tuple[str, ...] = ()
    destinations: tuple[AnyDestination, ...] = ()
    """Those that get a message are written one here."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The answer, how it came about, and the objects that carry it."""

    result: TriageResult
    choice: SeriesChoice
    objects: ResultSet
    messages: tuple[ResultMessage, ...] = ()


def relevant_instances(instances: Sequence[ReceivedInstance]) -> tuple[ReceivedInstance, ...]:
    """Instances that a run is about: the CT images; without any, whatever else was sent."""
    images = tuple(i for i in instances if i.role is InstanceRole.IMAGE)
    return images or tuple(i for i in instances if i.role is InstanceRole.OTHER)


def judge_study(instances: Sequence[ReceivedInstance], rules: EligibilityRules) -> SeriesChoice:
    """Verdict on each series by its headers, and the choice among them."""
    by_series: dict[str, list[ReceivedInstance]] = {}
    for instance in instances:
        by_series.setdefault(instance.series_uid, []).append(instance)
    return choose_series([judge_series(by_series[uid], rules) for uid in sorted(by_series)])


def analyse_study(
    *,
    study_uid: str,
    run: int,
    identity: PatientIdentity,
    instances: Sequence[ReceivedInstance],
    predictor: Predictor,
    options: AnalysisOptions,
    predecessors: Sequence[Dataset],
    now: datetime,
    beat: Callable[[], None],
) -> Analysis:
    """Choose the series, predict, explain and write the results of one study.

    Parameters
    ----------
    study_uid, run, identity
        What the results are filed under; every header used is checked against it.
    instances
        All instances of the study, in any order.
    predecessors
        SR data sets of earlier runs that this one supersedes, newest first.
    now
        Aware time that the results carry.
    beat
        Called between pieces of long work; it raises where the lease was lost.

    Raises
    ------
    PermanentError
        The images cannot be read, or belong to another study or patient.
    """
    log = get_logger(study_uid=study_uid, run=run)
    images = relevant_instances(instances)
    choice = judge_study(images, options.rules)
    result, choice, volume = _evaluate(images, choice, predictor, options, beat)
    log.info(
        "study.evaluated",
        outcome=str(result.outcome),
        reason=result.reason,
        series_uid=result.series_uid,
    )
    beat()
    study = StudyContext(
        study_uid=study_uid,
        run=run,
        manifest_digest=StudyManifest.of(study_uid, images).digest,
        identity=identity,
    )
    headers = _headers(images, result)
    objects = build_results(
        result=result,
        study=study,
        volume=volume,
        headers=headers,
        predecessors=predecessors,
        now=now,
        settings=options.report,
    )
    messages: tuple[ResultMessage, ...] = ()
    if options.destinations:
        context = MessageContext(
            result=result,
            study=study,
            source=choose_source(headers, result),
            objects=objects.objects,
            now=now,
            settings=options.report,
        )
        messages = build_messages(context, options.destinations)
    return Analysis(result=result, choice=choice, objects=objects, messages=messages)


def _evaluate(
    images: Sequence[ReceivedInstance],
    choice: SeriesChoice,
    predictor: Predictor,
    options: AnalysisOptions,
    beat: Callable[[], None],
) -> tuple[TriageResult, SeriesChoice, CtVolume | None]:
    """Analyse the chosen series; where its pixels refuse it, the next best one."""
    model = predictor.identity
    refused: CtVolume | None = None
    while choice.series_uid is not None:
        series_uid = choice.series_uid
        try:
            volume = load_volume([i for i in images if i.series_uid == series_uid])
        except ImagingError as error:
            choice = choice.refused(series_uid, "pixels", str(error))
            continue
        beat()
        refusal = judge_measures(measure_volume(volume), options.rules)
        if refusal is None:
            return _predict(volume, predictor, options, beat), choice, volume
        rule, reason = refusal
        choice = choice.refused(series_uid, rule, reason)
        refused = refused or volume
    if refused is None:
        return not_evaluated(choice.reason, model=model), choice, None
    # The best series that could be read at all: its slices are what the refusal speaks of.
    result = not_evaluated(
        choice.reason,
        series_uid=refused.series_uid,
        sop_instance_uids=refused.sop_instance_uids,
        model=model,
    )
    return result, choice, refused


def _predict(
    volume: CtVolume, predictor: Predictor, options: AnalysisOptions, beat: Callable[[], None]
) -> TriageResult:
    model = predictor.identity
    inference = predictor.predict(volume, beat=beat)
    allowed = model.name in options.allow_on_patients
    decided = decide(
        inference.prediction,
        quality_control=volume.quality_control,
        allow_on_patients=allowed,
        policy=options.report.policy,
    )
    shown: tuple[KeySlice, ...] = ()
    if decided.shows_key_slices:
        from pe_triage.infer.keyslices import key_slices

        shown = key_slices(volume, inference, predictor, options.key_slices)
    return make_result(
        inference.prediction,
        series_uid=volume.series_uid,
        sop_instance_uids=volume.sop_instance_uids,
        quality_control=volume.quality_control,
        allow_on_patients=allowed,
        policy=options.report.policy,
        key_slices=shown,
    )


def _headers(images: Sequence[ReceivedInstance], result: TriageResult) -> Mapping[str, Dataset]:
    """Headers, without pixels, of the images that the results speak of (at least one)."""
    wanted = {k.sop_instance_uid for k in result.key_slices}
    by_uid = {i.sop_instance_uid: i for i in images}
    if not by_uid:
        raise PermanentError("the study holds no instance to file a result under")
    analysed = [uid for uid in result.sop_instance_uids if uid in by_uid]
    wanted.update(analysed or sorted(by_uid)[:1])
    return {
        uid: dcmread(by_uid[uid].path, stop_before_pixels=True, force=False)
        for uid in sorted(wanted)
    }
