"""``pe-triage analyze``: one study from a folder, no network."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pe_triage.cli.options import settings_from
from pe_triage.errors import InputError, InvalidInstanceError

if TYPE_CHECKING:
    from pe_triage.domain import ReceivedInstance


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Directory for the results.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--model", type=click.Path(path_type=Path), help="Bundle [default: built in].")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print the show document.")
@click.option("--explain", is_flag=True, help="Print the verdict on each series, pixels included.")
def analyze(
    path: Path,
    out: Path | None,
    config: Path | None,
    model: Path | None,
    device: str | None,
    as_json: bool,
    explain: bool,
) -> None:
    """Analyse the one study under PATH (a folder of DICOM files, or one file).

    Results are written as files into --out. A refused study is an answer too (exit 0); with
    --explain alone nothing is analysed and only the verdicts are printed; PATH may then hold any
    number of studies.
    """
    if out is None and not explain:
        raise click.UsageError("give --out DIR for the results (or --explain)")
    settings = settings_from(
        data_dir=None, database=None, config=config, model=model, device=device
    )
    instances = read_folder(path)
    if explain:
        from pe_triage.answering import eligibility_rules
        from pe_triage.cli.explain import explanation, print_explanation

        told = explanation(instances, eligibility_rules(settings))
        if as_json and out is None:
            click.echo(json.dumps({"studies": told}, indent=2, ensure_ascii=False))
        elif not as_json:
            print_explanation(told)
    if out is None:
        return
    studies = sorted({i.study_uid for i in instances})
    if len(studies) > 1:
        raise InputError(f"{path} holds {len(studies)} studies; analyze takes one: name its folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".pe-triage-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    from pe_triage.app import analyse_folder

    document = analyse_folder(settings, instances, out)
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    from pe_triage.cli.tables import print_document, wide_console

    print_document(wide_console(), document)


def read_folder(path: Path) -> list[ReceivedInstance]:
    """Every DICOM instance under `path`; what is none is counted and named on stderr.

    Raises
    ------
    InputError
        Nothing readable is there, or one SOP Instance UID stands for two different data sets.
    """
    from pe_triage.domain import ReceivedInstance
    from pe_triage.imaging.facts import read_instance
    from pe_triage.receive.spool import Spool

    if not path.exists():
        raise InputError(f"no such file or directory: {path}")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    now = datetime.now(UTC)
    found: dict[str, ReceivedInstance] = {}
    refused: list[str] = []
    for file in files:
        if file.name.upper() == "DICOMDIR":
            continue
        try:
            record = read_instance(file)
            digest = Spool.digest(file)
        except (InvalidInstanceError, OSError) as error:
            refused.append(f"{file.name}: {error}")
            continue
        instance = ReceivedInstance(
            study_uid=record.study_uid,
            series_uid=record.series_uid,
            sop_instance_uid=record.sop_instance_uid,
            sop_class_uid=record.sop_class_uid,
            transfer_syntax_uid=record.transfer_syntax_uid,
            identity=record.identity,
            sha256=digest,
            size_bytes=file.stat().st_size,
            path=file.resolve(),
            received_at=now,
            calling_aet="",
            facts=record.facts,
        )
        known = found.setdefault(instance.sop_instance_uid, instance)
        if known.sha256 != digest:
            raise InputError(f"{file.name} and {known.path.name}: one UID, two different contents")
    if not found:
        detail = f" ({refused[0]})" if refused else ""
        raise InputError(f"no readable DICOM instance under {path}{detail}")
    if refused:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        click.echo(f"pe-triage: skipped {refused[0]}{more}", err=True)
    identities = {(i.study_uid, i.identity) for i in found.values()}
    if len(identities) > len({i.study_uid for i in found.values()}):
        raise InputError(f"{path}: one study under two patient identities; nothing was analysed")
    return list(found.values())
