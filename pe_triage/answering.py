"""What a study is answered with, from the settings: rules, options, and the model.

Nothing here imports torch before the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.config import Settings
from pe_triage.cores import usable_cores
from pe_triage.logs import get_logger
from pe_triage.resources import demonstration_bundle

if TYPE_CHECKING:
    from pe_triage.infer.predictor import Predictor
    from pe_triage.node.analysis import AnalysisOptions


def eligibility_rules(settings: Settings) -> EligibilityRules:
    """Limits of the ``[eligibility]`` table over the defaults.

    Raises
    ------
    ConfigurationError
        Naming an unknown key or one of the wrong type.
    """
    return EligibilityRules.from_table(settings.eligibility)


def analysis_options(settings: Settings) -> AnalysisOptions:
    """What the analysis may be told."""
    from pe_triage.node.analysis import AnalysisOptions
    from pe_triage.report.policy import TriagePolicy
    from pe_triage.report.settings import ReportSettings

    policy = TriagePolicy.from_table(settings.policy)
    return AnalysisOptions(
        rules=eligibility_rules(settings),
        report=ReportSettings.from_table(settings.report, policy=policy),
        key_slices=settings.key_slices,
        allow_on_patients=settings.allow_on_patients,
        destinations=settings.destinations,
    )


def load_predictor(settings: Settings) -> Predictor:
    """Load the bundle in force: the site's, or the demonstration bundle of the package.

    One event says which model, and what runs it.
    """
    from pe_triage.infer.predictor import Predictor

    predictor = Predictor(
        settings.model or demonstration_bundle(),
        settings.device,
        runtime=settings.runtime,
        batch_size=settings.batch_size or None,
        threads=settings.threads or usable_cores(),
    )
    model, runtime = predictor.identity, predictor.runtime.info
    get_logger().info(
        "model.loaded",
        model=f"{model.name} {model.version}",
        sha256=model.sha256,
        intended_use=model.intended_use.value,
        runtime=runtime.name,
        runtime_version=runtime.version,
        device=runtime.device,
        precision=runtime.precision,
        threads=runtime.threads,
        difference=runtime.difference,
    )
    return predictor


Load = Callable[[Settings], "Predictor"]
"""Brings the model that a worker answers with."""
