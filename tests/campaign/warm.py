"""Imported by the process that node processes are forked from: everything used once beforehand.

A worker's first study imports and compiles for a second; a campaign of a thousand kills would
spend most of its time on that.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import structlog

from pe_triage.answering import analysis_options
from pe_triage.config import load_settings
from pe_triage.domain import InstanceRole, PatientIdentity, ReceivedInstance
from pe_triage.imaging.facts import read_instance
from pe_triage.node.analysis import analyse_study
from pe_triage.receive.part10 import FileMetaTemplate
from tests.campaign.mains import without_pictures
from tests.campaign.standin import StandIn
from tests.campaign.studies import TRANSFER_SYNTAX, make_study, write_config


def analyse_once() -> None:
    """Read, analyse and report on one study."""
    study = make_study(0)
    without_pictures()
    with tempfile.TemporaryDirectory() as name:
        folder, instances = Path(name), []
        for number, image in enumerate(study.images):
            path = folder / f"{number}.dcm"
            template = FileMetaTemplate(transfer_syntax_uid=TRANSFER_SYNTAX, calling_aet="SCANNER")
            header = template.header(
                sop_class_uid=image.sop_class_uid, sop_instance_uid=image.sop_instance_uid
            )
            path.write_bytes(header + image.encoded)
            record = read_instance(path)
            instances.append(
                ReceivedInstance(
                    study_uid=record.study_uid,
                    series_uid=record.series_uid,
                    sop_instance_uid=record.sop_instance_uid,
                    sop_class_uid=record.sop_class_uid,
                    transfer_syntax_uid=record.transfer_syntax_uid,
                    identity=record.identity,
                    sha256=image.sha256,
                    size_bytes=path.stat().st_size,
                    path=path,
                    received_at=datetime.now(UTC),
                    calling_aet="SCANNER",
                    facts=record.facts,
                    role=InstanceRole.IMAGE,
                )
            )
        config = write_config(folder / "node.toml", ["PACS@127.0.0.1:104"])
        settings = load_settings({"data_dir": folder}, config_file=config)
        analyse_study(
            study_uid=study.study_uid,
            run=1,
            identity=PatientIdentity(patient_id=study.patient_id, issuer=""),
            instances=instances,
            predictor=StandIn(0.0),
            options=analysis_options(settings),
            predecessors=(),
            now=datetime.now().astimezone(),
            beat=lambda: None,
        )


def outlive_callers(receive: Callable[..., Any]) -> Callable[..., Any]:
    """Go on where a supervisor was killed in the middle of asking for a process.

    The library's server of processes would end with it, and every node of the campaign besides.
    """

    def received(*arguments: Any) -> Any:
        try:
            return receive(*arguments)
        except (EOFError, RuntimeError):
            raise OSError(errno.ECONNABORTED, "the caller was killed") from None

    return received


reduction.recvfds = outlive_callers(reduction.recvfds)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
analyse_once()
structlog.reset_defaults()
