"""The shard cache: each exam once decoded, ordered and resized, ready to be read at random.

One ``.safetensors`` file for each exam (a shard of some 30 MB at 256 x 256 and 245 slices), and
``index.json``. Safetensors, because it is in the house already, is read without executing
anything, is memory-mapped (a single slice costs one page-in, whatever the exam's length), and is
written by any number of processes without a lock. Tar shards (webdataset) give no random slices,
LMDB needs one writer and a size foretold, Zarr and HDF5 bring chunk caches that fight with forked
loaders. It is not compressed: the planned 1.8 million slices take about 235 GB at 256 x 256.

What is stored is the window-independent part of what serving does (`model.inputs`): planes of
Hounsfield units in anatomical order at the spec's size, lungs cut out where the spec says so,
rounded to whole units (an error of at most 0.5 HU, 0.00125 of the narrowest window). Windows are
applied when a batch is used, so one cache serves every spec that is prepared alike.

No patient's identifier is stored: `patient_key` is a digest that tells patients apart, no more.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.model.card import RESIZE
from pe_triage.model.inputs import ExamInput
from pe_triage.model.spec import ModelSpec
from pe_triage.model.units import UnitPlan, plan_units
from pe_triage.training.problems import Problem, enforce_policy
from pe_triage.training.rspect import RspectExam
from pe_triage.training.volumes import BadExamError, load_exam

FORMAT: Final = "pe-triage-cache/2"
INDEX_NAME: Final = "index.json"
_SLAB: Final = 32
_TENSORS: Final = ("hu_zyx", "image_pe_z", "exam_l")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedExam:
    """One exam in the cache.

    Attributes
    ----------
    image_pe_z
        uint8 (slices,), foot to head; read-only.
    exam_l
        float32 (9,), in the order of `EXAM_LABELS`; read-only.
    patient_key
        Equal for exams of one patient where headers name the patient, else the study's own.
    facts
        Scanner, kernel, thickness and spacing, for subgroups.
    sha256
        Of the pixels.
    planes
        How many are stored: the slices, or a resampling of them (`model.units`).
    spacing_z_mm
        Distance of the source's slices.
    """

    study_uid: str
    path: Path
    image_pe_z: NDArray[np.uint8]
    exam_l: NDArray[np.float32]
    patient_key: str
    quality_control: bool
    facts: Mapping[str, Any]
    sha256: str
    planes: int
    spacing_z_mm: float

    def __post_init__(self) -> None:
        self.image_pe_z.setflags(write=False)
        self.exam_l.setflags(write=False)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return len(self.image_pe_z)

    @property
    def positive(self) -> bool:
        """Whether the exam shows PE."""
        return not self.exam_l[:2].any()

    def plan(self, spec: ModelSpec) -> UnitPlan:
        """Return the exam's units under a spec that the cache was built for."""
        return _plan(spec, self.slices, self.spacing_z_mm)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.int16]:
        """Hounsfield units (planes, size, size) of a run of planes."""
        with safe_open(self.path, framework="numpy") as file:
            hu_zyx: NDArray[np.int16] = file.get_slice("hu_zyx")[start : stop or self.planes]
        return hu_zyx

    def read_at(self, z_n: Sequence[int]) -> NDArray[np.int16]:
        """Hounsfield units (n, size, size) of the planes `z_n`; repeats are allowed."""
        with safe_open(self.path, framework="numpy") as file:
            hu = file.get_slice("hu_zyx")
            return np.concatenate([hu[z : z + 1] for z in z_n])


@lru_cache(maxsize=4096)
def _plan(spec: ModelSpec, slices: int, spacing_z_mm: float) -> UnitPlan:
    return plan_units(spec, slices, spacing_z_mm)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCache:
    """A cache that is whole: its exams by Study Instance UID, and what could not be used."""

    root: Path
    size: int
    exams: tuple[CachedExam, ...]
    problems: tuple[Problem, ...]

    @property
    def phantoms(self) -> bool:
        """Whether any exam is marked as Quality Control Image: no patient."""
        return any(exam.quality_control for exam in self.exams)


Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""


def cache_directory(root: Path, spec: ModelSpec) -> Path:
    """Where the cache that serves `spec`, and every spec prepared alike, lies under `root`."""
    how = f"{FORMAT}|{RESIZE}|{spec.size}|{spec.slice_mm}|{spec.lung}"
    digest = hashlib.sha256(how.encode()).hexdigest()[:8]
    return root / f"hu-{spec.size}-{digest}"


def build_cache(
    exams: Sequence[RspectExam],
    root: Path,
    spec: ModelSpec,
    *,
    workers: int = 1,
    on_bad: str = "skip",
    progress: Progress | None = None,
) -> ShardCache:
    """Bring the cache up to date and return it; exams that are there already are kept.

    Interrupted at any moment, it goes on where it stopped. Exams whose files or labels changed
    since are built anew.

    Parameters
    ----------
    root
        Directory of caches; each way of preparing gets a directory of its own.
    spec
        Says the size; of the rest only what changes the stored values matters.
    workers
        Processes.

    Raises
    ------
    InputError
        Nothing usable, a directory that cannot be written, or a bad exam under ``fail``.
    """
    directory = cache_directory(root, spec)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror or error}") from None
    done: list[CachedExam | Problem] = []
    total = len(exams)

    def note(result: CachedExam | Problem) -> None:
        done.append(result)
        if isinstance(result, Problem) and on_bad == "fail":
            enforce_policy([result], on_bad)
        if progress is not None:
            progress(len(done), total)

    if workers <= 1:
        for exam in exams:
            note(_build_one(exam, directory, spec))
    else:
        # spawn: a forked child of a process that holds torch's threads may hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                for future in as_completed(
                    [pool.submit(_build_one, exam, directory, spec) for exam in exams]
                ):
                    note(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    cached = sorted((r for r in done if isinstance(r, CachedExam)), key=lambda r: r.study_uid)
    problems = sorted((r for r in done if isinstance(r, Problem)), key=lambda r: r.study_uid)
    if not cached:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise InputError(f"no exam could be used{first}")
    cache = ShardCache(
        root=directory, size=spec.size, exams=tuple(cached), problems=tuple(problems)
    )
    _write_index(cache)
    return cache


def verify_cache(cache: ShardCache) -> list[str]:
    """Study Instance UIDs of exams whose pixels or labels are not those that were written."""
    bad = []
    for exam in cache.exams:
        try:
            with safe_open(exam.path, framework="numpy") as file:
                said = json.loads(file.metadata()["pe_triage"])["content"]
                intact = _content(*(file.get_tensor(name) for name in _TENSORS)) == said
        except (SafetensorError, OSError, ValueError, KeyError):
            intact = False
        if not intact:
            bad.append(exam.study_uid)
    return bad


def _content(*arrays: NDArray[Any]) -> str:
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(array.tobytes())
    return hasher.hexdigest()


def _build_one(exam: RspectExam, directory: Path, spec: ModelSpec) -> CachedExam | Problem:
    path = directory / f"{exam.study_uid}.safetensors"
    try:
        source = _source_digest(exam)
        cached = _open(path)
        if cached is not None and cached[1] == source:
            return cached[0]
        return _make(exam, path, spec, source)
    except BadExamError as error:
        return Problem(code=error.code, study_uid=exam.study_uid, detail=str(error))


def _make(exam: RspectExam, path: Path, spec: ModelSpec, source: str) -> CachedExam:
    loaded = load_exam(exam)
    volume = loaded.volume
    source_input = ExamInput(spec, volume.hu_zyx, volume.spacing_mm)
    planes = source_input.plan.planes
    hu_zyx = np.empty((planes, spec.size, spec.size), dtype=np.int16)
    for start in range(0, planes, _SLAB):
        stop = min(start + _SLAB, planes)
        hu = np.rint(source_input.planes_hu(start, stop))
        hu_zyx[start:stop] = np.clip(hu, -32768, 32767).astype(np.int16)
    # Without an identifier in the headers each study is taken for a patient of its own.
    identity = f"patient|{loaded.patient_id}" if loaded.patient_id else f"study|{exam.study_uid}"
    facts = loaded.facts
    tensors: dict[str, NDArray[Any]] = {
        "hu_zyx": hu_zyx,
        "image_pe_z": np.array(loaded.image_pe_z),
        "exam_l": exam.exam_vector,
    }
    header = {
        "format": FORMAT,
        "study_uid": exam.study_uid,
        "series_uid": exam.series_uid,
        "source": source,
        "patient_key": hashlib.sha256(identity.encode()).hexdigest()[:32],
        "quality_control": volume.quality_control,
        "spacing_z_mm": volume.spacing_mm[0],
        "planes": planes,
        "sop_instance_uids": list(volume.sop_instance_uids),
        "sha256": _content(hu_zyx),
        "content": _content(*(tensors[name] for name in _TENSORS)),
        "facts": {
            "manufacturer": facts.manufacturer,
            "model_name": facts.model_name,
            "kernel": list(facts.kernel),
            "slice_thickness_mm": facts.slice_thickness_mm,
            "lungs_found": source_input.lungs_found,
            "spacing_mm": [round(value, 4) for value in volume.spacing_mm],
        },
    }
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        save_file(tensors, scratch, metadata={"pe_triage": json.dumps(header)})
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    finally:
        scratch.unlink(missing_ok=True)
    opened = _open(path)
    assert opened is not None
    return opened[0]


def _open(path: Path) -> tuple[CachedExam, str] | None:
    """Read an exam's shard but its pixels; None where it is not there or not whole."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("pe_triage", "null"))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                return None
            image_pe_z = file.get_tensor("image_pe_z")
            exam_l = file.get_tensor("exam_l")
    except (OSError, SafetensorError, ValueError):
        return None
    if exam_l.shape != (len(EXAM_LABELS),):
        return None
    exam = CachedExam(
        study_uid=header["study_uid"],
        path=path,
        image_pe_z=image_pe_z,
        exam_l=exam_l,
        patient_key=header["patient_key"],
        quality_control=header["quality_control"],
        planes=header["planes"],
        spacing_z_mm=header["spacing_z_mm"],
        facts=header["facts"],
        sha256=header["sha256"],
    )
    return exam, header["source"]


def _source_digest(exam: RspectExam) -> str:
    """Digest of the exam's labels and of its files' names, sizes and times."""
    hasher = hashlib.sha256(json.dumps(sorted(exam.labels.items())).encode())
    for uid, pe in zip(exam.sop_instance_uids, exam.image_pe.tolist(), strict=True):
        try:
            stat = exam.path_of(uid).stat()
        except OSError as error:
            raise BadExamError("missing-file", f"{uid}: {error.strerror or error}") from None
        hasher.update(f"\n{uid} {pe} {stat.st_size} {stat.st_mtime_ns}".encode())
    return hasher.hexdigest()


def _write_index(cache: ShardCache) -> None:
    document = {
        "format": FORMAT,
        "size": cache.size,
        "exams": [
            {
                "study_uid": exam.study_uid,
                "slices": exam.slices,
                "positive_slices": int(exam.image_pe_z.sum()),
                "patient_key": exam.patient_key,
                "sha256": exam.sha256,
            }
            for exam in cache.exams
        ],
        "problems": [
            {"code": p.code, "study_uid": p.study_uid, "detail": p.detail} for p in cache.problems
        ],
    }
    scratch = cache.root / f".{INDEX_NAME}.{secrets.token_hex(4)}"
    scratch.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    scratch.replace(cache.root / INDEX_NAME)
