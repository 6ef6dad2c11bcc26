"""One study's way from received images to result objects: the same for node and command line.

Every step either produces the next value or says in words why the study cannot be evaluated; an
exception means that the analysis itself failed, which is never an answer about the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from pydicom import Dataset

from pe_triage.assemble.eligibility import EligibilityRules, SeriesChoice, cautions_of
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
    VolumeMeasures,
    image_id,
)
from pe_triage.errors import PermanentError
from pe_triage.frames import images_of
from pe_triage.logs import get_logger
from pe_triage.node.corrections import restated
from pe_triage.node.source_headers import frame_header
from pe_triage.node.work import Beat, StudyWork
from pe_triage.report.messages import MessageContext, build_messages
from pe_triage.report.policy import decide, make_result, not_evaluated
from pe_triage.report.results import build_results
from pe_triage.report.settings import ReportSettings
from pe_triage.report.study import StudyContext, choose_source
from pe_triage.store.studies import CorrectedPatient

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


@dataclass(frozen=True, kw_only=True)
class Question:
    """All that shapes an answer beside the images, for a study's first report on whom it names."""

    study: StudyContext
    dated_at: datetime
    cautions: tuple[str, ...]
    options: AnalysisOptions


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was answered, and to what; the objects are encoded."""

    question: Question
    result: TriageResult
    choice: SeriesChoice
    headers: Mapping[str, Dataset]
    objects: ResultSet


def relevant_instances(instances: Sequence[ReceivedInstance]) -> tuple[ReceivedInstance, ...]:
    """Instances that a run is about: the CT images; without any, whatever else was sent."""
    images = tuple(i for i in instances if i.role is InstanceRole.IMAGE)
    return images or tuple(i for i in instances if i.role is InstanceRole.OTHER)


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
    beat: Beat,
    dated_at: datetime | None = None,
    cautions: tuple[str, ...] = (),
    corrected: CorrectedPatient | None = None,
    work: StudyWork | None = None,
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
        Aware time that messages carry.
    dated_at
        Aware time that objects carry (`Job.dated_at`); None: `now`.
    beat
        Called between pieces of long work; it raises where the lease was lost.
    cautions
        What speaks against the study as it came, such as images that never arrived; see
        `report.policy.decide`.
    corrected
        Whom the results name where the PACS has corrected the images' patient since.
    work
        Steps of this analysis that may have been done before; not used where it was made of
        other images.

    Raises
    ------
    PermanentError
        The images cannot be read, or belong to another study or patient.
    """
    log = get_logger(study_uid=study_uid, run=run)
    images = relevant_instances(instances)
    if work is None or not work.is_of(images):
        work = StudyWork(images, predictor, options.rules)
    question = Question(
        study=_study(study_uid, run, identity, images),
        dated_at=dated_at or now,
        cautions=cautions,
        options=options,
    )

    def told(result: TriageResult, choice: SeriesChoice) -> None:
        log.info(
            "study.evaluated",
            outcome=str(result.outcome),
            reason=result.reason,
            series_uid=result.series_uid,
            choice=choice.reason,
        )
        beat()

    answer = work.answer
    if answer is not None and answer.question == question and not predecessors and not corrected:
        told(answer.result, answer.choice)
    else:
        answer = _answer(question, work, images, predictor, beat, predecessors, corrected, told)
    messages: tuple[ResultMessage, ...] = ()
    if options.destinations:
        context = MessageContext(
            result=answer.result,
            study=question.study,
            source=choose_source(answer.headers, answer.result),
            objects=answer.objects.objects,
            now=now,
            settings=options.report,
        )
        messages = build_messages(context, options.destinations)
    return Analysis(
        result=answer.result, choice=answer.choice, objects=answer.objects, messages=messages
    )


def prepare_answer(
    work: StudyWork,
    images: Sequence[ReceivedInstance],
    predictor: Predictor,
    options: AnalysisOptions,
    *,
    local: Callable[[datetime], datetime] = datetime.astimezone,
) -> None:
    """Answer what a first run about exactly these images will most likely ask, and keep it.

    That is: nothing speaks against the study as it came, and its objects are dated by its last
    image. A run that asks anything else gets nothing of it.

    Raises
    ------
    PermanentError
        As `analyse_study` does.
    """
    first = images[0]
    question = Question(
        study=_study(first.study_uid, 1, first.identity, images),
        dated_at=local(max(image.received_at for image in images)),
        cautions=(),
        options=options,
    )
    work.answer = _answer(question, work, images, predictor, lambda: None)


def _study(
    study_uid: str, run: int, identity: PatientIdentity, images: Sequence[ReceivedInstance]
) -> StudyContext:
    return StudyContext(
        study_uid=study_uid,
        run=run,
        manifest_digest=StudyManifest.of(study_uid, images).digest,
        identity=identity,
    )


def _answer(
    question: Question,
    work: StudyWork,
    images: Sequence[ReceivedInstance],
    predictor: Predictor,
    beat: Beat,
    predecessors: Sequence[Dataset] = (),
    corrected: CorrectedPatient | None = None,
    told: Callable[[TriageResult, SeriesChoice], None] = lambda *_: None,
) -> Answer:
    options = question.options
    result, choice, volume = _evaluate(work, predictor, options, beat, question.cautions)
    told(result, choice)
    headers = {
        uid: restated(header, corrected) for uid, header in _headers(images, result, work).items()
    }
    objects = build_results(
        result=result,
        study=question.study,
        volume=volume,
        headers=headers,
        predecessors=predecessors,
        now=question.dated_at,
        settings=options.report,
        pictures=work.pictures,
    )
    return Answer(question=question, result=result, choice=choice, headers=headers, objects=objects)


def _evaluate(
    work: StudyWork,
    predictor: Predictor,
    options: AnalysisOptions,
    beat: Beat,
    cautions: tuple[str, ...],
) -> tuple[TriageResult, SeriesChoice, CtVolume | None]:
    """Analyse the chosen series, or say why there is none."""
    model = predictor.identity
    selection = work.selection(beat)
    choice, volume, refused = selection.choice, selection.volume, selection.refused
    if volume is not None:
        measures = selection.measures[volume.series_uid]
        result = _predict(work, volume, measures, predictor, options, cautions, beat)
        return replace(result, series_choice=choice.reason), choice, volume
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
    work: StudyWork,
    volume: CtVolume,
    measures: VolumeMeasures,
    predictor: Predictor,
    options: AnalysisOptions,
    cautions: tuple[str, ...],
    beat: Beat,
) -> TriageResult:
    model = predictor.identity
    inference = work.inference(volume, beat)
    measures = replace(measures, unlikeness=inference.unlikeness)
    cautions = (*cautions_of(measures, options.rules), *cautions)
    allowed = model.name in options.allow_on_patients
    decided = decide(
        inference.prediction,
        quality_control=volume.quality_control,
        allow_on_patients=allowed,
        policy=options.report.policy,
        cautions=cautions,
    )
    shown: tuple[KeySlice, ...] = ()
    if decided.shows_key_slices:
        shown = work.key_slices(volume, inference, options.key_slices)
    answer = make_result(
        inference.prediction,
        series_uid=volume.series_uid,
        sop_instance_uids=volume.sop_instance_uids,
        quality_control=volume.quality_control,
        allow_on_patients=allowed,
        policy=options.report.policy,
        key_slices=shown,
        cautions=cautions,
        frame_numbers=volume.frame_numbers,
    )
    return replace(answer, unlikeness=inference.unlikeness)


def _headers(
    images: Sequence[ReceivedInstance], result: TriageResult, work: StudyWork
) -> Mapping[str, Dataset]:
    """Headers, without pixels, of the images that the results speak of (at least one)."""
    wanted = {k.sop_instance_uid for k in result.key_slices}
    by_uid = {i.sop_instance_uid: i for i in images}
    if not by_uid:
        raise PermanentError("the study holds no instance to file a result under")
    analysed = [uid for uid in result.sop_instance_uids if uid in by_uid]
    wanted.update(analysed or sorted(by_uid)[:1])
    headers = {uid: work.header(by_uid[uid]) for uid in sorted(wanted)}
    by_frame = {
        image_id(i.sop_instance_uid, i.frame): i
        for i in images_of(by_uid[k.sop_instance_uid] for k in result.key_slices if k.frame)
    }
    for key in result.key_slices:
        if key.frame is not None:
            header = headers[key.sop_instance_uid]
            headers[key.image_id] = frame_header(header, by_frame[key.image_id])
    return headers
