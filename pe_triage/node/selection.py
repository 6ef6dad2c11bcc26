"""From the series of a study to the one volume that is analysed, or the reason why there is none.

The same for the node, ``analyze`` and ``analyze --explain``: what a site commissions its rules on
is what decides later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pe_triage.assemble.eligibility import (
    EligibilityRules,
    SeriesChoice,
    cautions_of,
    choose_series,
    judge_measures,
    judge_series,
)
from pe_triage.domain import CtVolume, ReceivedInstance, VolumeMeasures
from pe_triage.errors import ImagingError
from pe_triage.imaging.measure import measure_volume
from pe_triage.imaging.volume import load_volume

Load = Callable[[Sequence[ReceivedInstance]], CtVolume]
"""As `load_volume`."""

PIXEL_RULE = "pixels"
"""Rule of what the loader refuses: images that cannot be decoded or put in order exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The choice after the pixels were looked at.

    Attributes
    ----------
    volume
        Of the chosen series; None where none is left.
    refused
        Volume of the best series that could be read at all, where none is left.
    measures
        What was measured, by Series Instance UID, of every series whose pixels were read.
    cautions
        What takes a negative answer on `volume` its certainty.
    """

    choice: SeriesChoice
    volume: CtVolume | None
    refused: CtVolume | None
    measures: dict[str, VolumeMeasures]
    cautions: tuple[str, ...] = ()


def judge_study(instances: Sequence[ReceivedInstance], rules: EligibilityRules) -> SeriesChoice:
    """Verdict on each series by its headers, and the choice among them."""
    by_series: dict[str, list[ReceivedInstance]] = {}
    for instance in instances:
        by_series.setdefault(instance.series_uid, []).append(instance)
    return choose_series([judge_series(by_series[uid], rules) for uid in sorted(by_series)])


def select_volume(
    instances: Sequence[ReceivedInstance],
    rules: EligibilityRules,
    *,
    beat: Callable[[], None] = lambda: None,
    load: Load = load_volume,
) -> Selection:
    """Choose a series by headers and pixels; where its pixels refuse it, the next best one.

    Where the headers leave several acquisitions, the pixels of each are measured, and the choice
    falls on the one whose vessels are clearly better enhanced.

    Parameters
    ----------
    beat
        Called between pieces of long work; it raises where the lease was lost.
    load
        Makes the volume of a series.
    """
    reader = _Reader(instances, rules, beat, load)
    choice = judge_study(instances, rules)
    while choice.series_uid is not None or choice.contenders:
        series_uid = choice.series_uid or next(
            (uid for uid in choice.contenders if uid not in reader.measures), None
        )
        if series_uid is None:
            levels = {uid: reader.measures[uid].vessel_hu for uid in choice.contenders}
            choice = choice.by_contrast(levels, rules.tie_contrast_hu)
            continue
        refusal = reader.read(series_uid)
        if refusal is not None:
            choice = choice.refused(series_uid, *refusal)
        elif choice.series_uid is not None:
            return Selection(
                choice=choice,
                volume=reader.take(series_uid),
                refused=None,
                measures=reader.measures,
                cautions=cautions_of(reader.measures[series_uid], rules),
            )
    return Selection(choice=choice, volume=None, refused=reader.refused, measures=reader.measures)


class _Reader:
    """Reads and judges the pixels of series, holding one volume at a time besides the refused."""

    def __init__(
        self,
        instances: Sequence[ReceivedInstance],
        rules: EligibilityRules,
        beat: Callable[[], None] = lambda: None,
        load: Load = load_volume,
    ) -> None:
        self._instances = instances
        self._rules = rules
        self._beat = beat
        self._load_volume = load
        self._volume: CtVolume | None = None
        self.refused: CtVolume | None = None
        self.measures: dict[str, VolumeMeasures] = {}

    def read(self, series_uid: str) -> tuple[str, str] | None:
        """Name and words of the refusing rule; None where the pixels are plausible."""
        if series_uid in self.measures:
            return judge_measures(self.measures[series_uid], self._rules)
        try:
            volume = self._load(series_uid)
        except ImagingError as error:
            return PIXEL_RULE, str(error)
        self._beat()
        self.measures[series_uid] = measures = measure_volume(volume)
        self._beat()
        refusal = judge_measures(measures, self._rules)
        if refusal is not None:
            self.refused = self.refused or volume
        return refusal

    def take(self, series_uid: str) -> CtVolume:
        """Return the volume of a series that was read before."""
        if self._volume is None or self._volume.series_uid != series_uid:
            self._load(series_uid)
        assert self._volume is not None
        return self._volume

    def _load(self, series_uid: str) -> CtVolume:
        self._volume = None
        self._volume = self._load_volume([i for i in self._instances if i.series_uid == series_uid])
        return self._volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The verdict on every series of a study, pixels included, for people.

    Attributes
    ----------
    choice
        Which series a run would analyse, and the verdicts; a series whose pixels refuse it is
        refused here even where another would be chosen before it.
    cautions
        By Series Instance UID: what would take a negative answer its certainty.
    """

    choice: SeriesChoice
    measures: dict[str, VolumeMeasures]
    cautions: dict[str, tuple[str, ...]]


def explain_study(instances: Sequence[ReceivedInstance], rules: EligibilityRules) -> Explanation:
    """Judge every series of a study by headers and pixels, and say which one would be analysed."""
    selection = select_volume(instances, rules)
    reader = _Reader(instances, rules)
    reader.measures.update(selection.measures)
    verdicts = []
    for verdict in selection.choice.verdicts:
        refusal = reader.read(verdict.series_uid) if verdict.eligible else None
        if refusal is not None:
            rule, reason = refusal
            verdict = replace(verdict, eligible=False, rule=rule, reason=reason)
        verdicts.append(verdict)
    return Explanation(
        choice=replace(selection.choice, verdicts=tuple(verdicts)),
        measures=reader.measures,
        cautions={uid: cautions_of(m, rules) for uid, m in reader.measures.items()},
    )
