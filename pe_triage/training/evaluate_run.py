"""A bundle over many exams: one small file for each, so that a killed run goes on where it was.

``WORK/<first 16 digits of the model's SHA-256>/<hash of the study UID>.npz`` holds what was
predicted. It is reused when the same model meets the same files (names, sizes, times), mask
included; truth is never stored there, so a corrected label counts at the next report at once.
Exams that cannot be used are named with their reason and tried again next time.

Patients are grouped by a keyed hash of their identifier whose key lies in ``WORK`` only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS, InstanceFacts
from pe_triage.errors import InputError, PermanentError
from pe_triage.infer.keyslices import explain_slices, key_slices
from pe_triage.infer.predictor import Inference, Predictor
from pe_triage.infer.runtime import stage_two
from pe_triage.model.outputs import to_slices
from pe_triage.model.reference import thinned
from pe_triage.training.evaluate_causes import mimics_of
from pe_triage.training.evaluate_data import LabelledStudy, LoadedStudy, load_study
from pe_triage.training.evaluate_localisation import Peak, judge_peaks, load_mask
from pe_triage.training.predictions import Predictions, write_npz

KEY_SLICES: Final = 5
_SHARD: Final = 3
"""Version of the small files."""
_FEAT: Final = "feat_zd"
_UNEXPLAINED: Final = {"peaks": np.array("[]"), "pointed": np.array("null")}
_INPUT_KEYS: Final = ("windows", "size", "planes", "slice_mm", "lung", "encoder", "window_slices",
                      "window_step", "mean", "std")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a bundle said of the exams that could be used.

    Attributes
    ----------
    studies
        Those in the table, in its order.
    facts
        Scanner, thickness and so on of each: never identity.
    peaks_s
        Row of the table to its key slices against the mask; only PE exams with a mask.
    pointed_s
        Row of the table to where its surest slice's heatmap peaks, LPS millimetres; only exams
        without PE whose truth knows what could be taken for a clot.
    skipped
        Study UID to why it could not be used.
    feat_szd
        Embeddings of each, thinned; empty unless they were asked for.
    """

    table: Predictions
    studies: tuple[LabelledStudy, ...]
    facts: tuple[Mapping[str, Any], ...]
    peaks_s: Mapping[int, tuple[Peak, ...]]
    pointed_s: Mapping[int, tuple[float, float, float]]
    skipped: Mapping[str, str]
    feat_szd: tuple[NDArray[np.float32], ...] = ()


def run_bundle(
    predictor: Predictor,
    studies: Sequence[LabelledStudy],
    work: Path,
    *,
    threads: int = 2,
    progress: Callable[[str], None] | None = None,
    explained: bool = True,
    beside: Sequence[Predictor] = (),
    embeddings: bool = False,
) -> Run:
    """Predict every study, reusing what lies in `work`.

    Parameters
    ----------
    work
        Directory of the small files; made where missing.
    threads
        Decoding threads of the one study that is read ahead.
    progress
        Called with the UID of each study when it is done or skipped.
    explained
        Whether heatmaps are held against masks too; comparisons do without.
    beside
        Further predictors with this one's encoder (`same_encoder`): they conclude from the same
        embeddings, and their small files are written for a later run without explanations.
    embeddings
        Keep thinned embeddings too: a calibration makes the bundle's reference of them.

    Raises
    ------
    InputError
        `work` cannot be written, or no study at all could be used.
    """
    folder = _folder(work, predictor)
    try:
        for each in (predictor, *beside):
            _folder(work, each).mkdir(parents=True, exist_ok=True)
        salt = _salt(work)
    except OSError as error:
        raise InputError(f"cannot write {work}: {error.strerror or error}") from None
    shards: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    todo = []
    for study in studies:
        shard = _read_shard(_path(folder, study), _key(predictor, study, explained))
        if shard is None or (embeddings and _FEAT not in shard):
            todo.append(study)
        else:
            shards[study.study_uid] = shard
            if progress is not None:
                progress(study.study_uid)
    for study, loaded in _read_ahead(todo, threads):
        if isinstance(loaded, PermanentError):
            skipped[study.study_uid] = str(loaded)
        else:
            try:
                inference = predictor.predict(loaded.volume)
                shard = _answers(predictor, inference, study, loaded, salt)
                if explained:
                    shard |= _explanations(predictor, inference, study, loaded)
                kept = {_FEAT: thinned(inference.feat_zd)} if embeddings else {}
                shard |= kept
                for other in beside:
                    second = _concluded(other, inference)
                    answers = _answers(other, second, study, loaded, salt) | kept
                    _write(work, other, study, False, answers)
            except PermanentError as error:
                skipped[study.study_uid] = str(error)
            else:
                shards[study.study_uid] = _write(work, predictor, study, explained, shard)
        if progress is not None:
            progress(study.study_uid)
    used = tuple(study for study in studies if study.study_uid in shards)
    if not used:
        first = next(iter(skipped.values()), "no study")
        raise InputError(f"no study could be evaluated; the first reason: {first}")
    run = _collect(predictor, used, [shards[s.study_uid] for s in used], skipped)
    if not embeddings:
        return run
    return replace(run, feat_szd=tuple(shards[s.study_uid][_FEAT] for s in used))


def _salt(work: Path) -> bytes:
    path = work / "patient-grouping.key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def _path(folder: Path, study: LabelledStudy) -> Path:
    return folder / f"{hashlib.sha256(study.study_uid.encode()).hexdigest()[:32]}.npz"


def _folder(work: Path, predictor: Predictor) -> Path:
    return work / predictor.identity.sha256[:16]


def same_encoder(one: Predictor, other: Predictor) -> bool:
    """Whether two bundles' stage 1 is the same, weights and input alike."""

    def what(predictor: Predictor) -> tuple[Any, ...]:
        network, spec = predictor.network, predictor.card.spec
        return (
            *(getattr(spec, name) for name in _INPUT_KEYS),
            *((k, t.cpu().numpy().tobytes()) for k, t in network.encoder.state_dict().items()),
        )

    return what(one) == what(other)


def _concluded(predictor: Predictor, inference: Inference) -> Inference:
    """Return what another stage 2 says of the same embeddings."""
    prediction = predictor.conclude(inference.feat_zd, inference.plan)
    return Inference(prediction=prediction, feat_zd=inference.feat_zd, plan=inference.plan)


def _write(
    work: Path,
    predictor: Predictor,
    study: LabelledStudy,
    explained: bool,
    shard: dict[str, Any],
) -> dict[str, Any]:
    keyed = {**_UNEXPLAINED, **shard, "key": np.array(_key(predictor, study, explained))}
    write_npz(_path(_folder(work, predictor), study), keyed)
    return keyed


def _key(predictor: Predictor, study: LabelledStudy, explained: bool) -> str:
    head = f"{_SHARD} {predictor.identity.sha256} {study.study_uid} {explained}"
    hasher = hashlib.sha256(head.encode())
    extra = () if study.mask_path is None else (study.mask_path,)
    for path in sorted((*study.files, *extra)):
        try:
            stat = path.stat()
        except OSError:
            continue  # reading it will say so
        hasher.update(f"\n{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    hasher.update(f"\n{study.positive} {mimics_of(study.detail) != []}".encode())
    return hasher.hexdigest()


def _read_shard(path: Path, key: str) -> dict[str, Any] | None:
    """Read a small file if it is whole and of this key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            shard = {name: file[name] for name in file.files}
    except Exception:  # noqa: BLE001  whatever is wrong with it, it is made anew
        return None
    return shard if str(shard.get("key")) == key else None


def _read_ahead(
    studies: Sequence[LabelledStudy], threads: int
) -> Iterator[tuple[LabelledStudy, LoadedStudy | PermanentError]]:
    """Yield studies with their volumes; the next is read while the last is predicted."""

    def load(study: LabelledStudy) -> LoadedStudy | PermanentError:
        try:
            return load_study(study, threads=threads)
        except PermanentError as error:
            return error

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        ahead: Future[LoadedStudy | PermanentError] | None = None
        for k, study in enumerate(studies):
            loaded = (ahead or pool.submit(load, study)).result()
            ahead = pool.submit(load, studies[k + 1]) if k + 1 < len(studies) else None
            yield study, loaded


def _explanations(
    predictor: Predictor, inference: Inference, study: LabelledStudy, loaded: LoadedStudy
) -> dict[str, Any]:
    """Where the heatmaps peak: against the clots' mask, or, without PE, anywhere."""
    volume, prediction = loaded.volume, inference.prediction
    peaks: list[dict[str, Any]] = []
    pointed: list[float] | None = None
    if study.positive and study.mask_path is not None:
        mask_zyx = load_mask(study.mask_path, volume)
        keys = key_slices(volume, inference, predictor, KEY_SLICES)
        peaks = [peak.to_json() for peak in judge_peaks(volume, mask_zyx, keys)]
    elif not study.positive and mimics_of(study.detail):
        surest = int(np.argmax(prediction.slice_probability_z))
        (key,) = explain_slices(volume, inference, predictor, [surest])
        if key.heatmap_yx.any():
            voxel = np.array([key.peak_yx[1], key.peak_yx[0], surest, 1.0])
            pointed = [round(float(v), 2) for v in (volume.affine_lps @ voxel)[:3]]
    return {"peaks": np.array(json.dumps(peaks)), "pointed": np.array(json.dumps(pointed))}


def _answers(
    predictor: Predictor,
    inference: Inference,
    study: LabelledStudy,
    loaded: LoadedStudy,
    salt: bytes,
) -> dict[str, Any]:
    volume, prediction = loaded.volume, inference.prediction
    image_logit_z, exam_logit_l, bag_d = raw_outputs(predictor, inference)
    # Without a Patient ID a study is a patient of its own.
    who = loaded.patient_id or f"study {study.study_uid}"
    return {
        "series_uid": np.array(volume.series_uid),
        "patient": np.array(hmac.new(salt, who.encode(), hashlib.sha256).hexdigest()[:32]),
        "sop_instance_uids": np.array(volume.sop_instance_uids),
        "slice_probability_z": prediction.slice_probability_z.astype(np.float64),
        "attention_z": prediction.attention_z.astype(np.float64),
        "exam_l": np.array([prediction.exam_probability[label] for label in EXAM_LABELS]),
        "pe": np.array(prediction.pe_probability),
        "image_logit_z": image_logit_z,
        "exam_logit_l": exam_logit_l,
        "bag_d": bag_d,
        "facts": np.array(json.dumps(_facts(loaded.facts, loaded))),
    }


@torch.inference_mode()
def raw_outputs(predictor: Predictor, inference: Inference) -> tuple[Any, Any, Any]:
    """Raw logits of slices (z,) and exam (9,), and the bag's features (d,)."""
    with stage_two():
        logits = predictor.network.exam_logits(torch.from_numpy(inference.feat_zd.copy())[None])
        image_bz = logits.image_bz
        if inference.plan is not None:
            image_bz = to_slices(image_bz, inference.plan)
    return (
        image_bz[0].numpy().astype(np.float64),
        logits.exam_bl[0].numpy().astype(np.float64),
        logits.bag_bd[0].numpy().astype(np.float32),
    )


def _facts(facts: InstanceFacts, loaded: LoadedStudy) -> dict[str, Any]:
    """What subgroups are made of: nothing that names a person or a place."""
    return {
        "manufacturer": facts.manufacturer,
        "model_name": facts.model_name,
        "slice_thickness_mm": facts.slice_thickness_mm,
        "spacing_z_mm": round(float(loaded.volume.spacing_mm[0]), 4),
        "kernel": list(facts.kernel),
        "slices": len(loaded.volume.sop_instance_uids),
    }


def _collect(
    predictor: Predictor,
    studies: tuple[LabelledStudy, ...],
    shards: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
) -> Run:
    patients = [str(shard["patient"]) for shard in shards]
    number = {name: i for i, name in enumerate(dict.fromkeys(patients))}
    counts = [len(shard["sop_instance_uids"]) for shard in shards]
    identity = predictor.identity
    table = Predictions(
        model={
            "name": identity.name,
            "version": identity.version,
            "sha256": identity.sha256,
            "intended_use": identity.intended_use.value,
            "calibrated": identity.calibrated,
        },
        thresholds=dict(predictor.card.thresholds),
        study_uids=tuple(study.study_uid for study in studies),
        series_uids=tuple(str(shard["series_uid"]) for shard in shards),
        patient_s=np.array([number[name] for name in patients], dtype=np.int64),
        start_s=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        sop_instance_uids=tuple(str(u) for shard in shards for u in shard["sop_instance_uids"]),
        slice_probability_k=np.concatenate([shard["slice_probability_z"] for shard in shards]),
        attention_k=np.concatenate([shard["attention_z"] for shard in shards]),
        exam_sl=np.stack([shard["exam_l"] for shard in shards]),
        pe_s=np.array([float(shard["pe"]) for shard in shards]),
        image_logit_k=np.concatenate([shard["image_logit_z"] for shard in shards]),
        exam_logit_sl=np.stack([shard["exam_logit_l"] for shard in shards]),
        bag_sd=np.stack([shard["bag_d"] for shard in shards]),
    )
    peaks = {
        s: tuple(Peak(**document) for document in json.loads(str(shard["peaks"])))
        for s, shard in enumerate(shards)
    }
    pointed = {s: json.loads(str(shard["pointed"])) for s, shard in enumerate(shards)}
    return Run(
        table=table,
        studies=studies,
        facts=tuple(json.loads(str(shard["facts"])) for shard in shards),
        peaks_s={s: found for s, found in peaks.items() if found},
        pointed_s={s: point for s, point in pointed.items() if point},
        skipped=dict(skipped),
    )
