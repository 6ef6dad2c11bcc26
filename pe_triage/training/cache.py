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

Where an exam has a clot mask, the share of each stored pixel that is clot lies beside its planes
(0 to 255), for the planes that hold any; it went the same way as the Hounsfield units, so the two
cover each other. A shard from before its exam had a mask is built anew, all others are kept.

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
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pe_triage.domain import EXAM_LABELS, CtVolume
from pe_triage.errors import InputError, PermanentError
from pe_triage.imaging.windows import PADDING_HU
from pe_triage.model.card import RESIZE
from pe_triage.model.inputs import ExamInput
from pe_triage.model.spec import ModelSpec
from pe_triage.model.units import UnitPlan, plan_units
from pe_triage.training.evaluate_localisation import load_mask
from pe_triage.training.problems import Problem, enforce_policy
from pe_triage.training.rspect import RspectExam
from pe_triage.training.volumes import BadExamError, load_exam

FORMAT: Final = "pe-triage-cache/2"
INDEX_NAME: Final = "index.json"
_SLAB: Final = 32
_TENSORS: Final = ("hu_zyx", "image_pe_z", "exam_l")
_CLOT_TENSORS: Final = ("clot_kyx", "clot_plane_k")
_CLOT_HU: Final = 1000
"""What a voxel of clot stands above `PADDING_HU` while a mask passes for Hounsfield units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedExam:
    """One exam in the cache.

    Attributes
    ----------
    image_pe_z
        uint8 (slices,), foot to head; read-only.
    exam_l
        float32 (9,), in the order of `EXAM_LABELS`, not a number where unknown; read-only.
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
    clot_sha256
        Of the clot mask; empty where the exam has none.
    clot_planes
        How many planes hold clot by the mask.
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
    clot_sha256: str = ""
    clot_planes: int = 0

    def __post_init__(self) -> None:
        self.image_pe_z.setflags(write=False)
        self.exam_l.setflags(write=False)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return len(self.image_pe_z)

    @property
    def positive(self) -> bool:
        """Whether the exam shows PE; by its images where the exam's labels are unknown."""
        return not self.exam_l[:2].any() if self.exam_known else bool(self.image_pe_z.any())

    @property
    def exam_known(self) -> bool:
        """Whether the exam labels are known; if not, only its images can be learnt from."""
        return not np.isnan(self.exam_l).any()

    @property
    def masked(self) -> bool:
        """Whether the exam has a clot mask."""
        return bool(self.clot_sha256)

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

    def read_clots_at(self, z_n: Sequence[int]) -> NDArray[np.uint8]:
        """Share of clot (n, size, size), 0 to 255, of the planes `z_n`; zeros without a mask."""
        with safe_open(self.path, framework="numpy") as file:
            side = file.get_slice("hu_zyx").get_shape()[1]
            out = np.zeros((len(z_n), side, side), dtype=np.uint8)
            if self.clot_planes:
                clots = file.get_slice("clot_kyx")
                at = {int(z): k for k, z in enumerate(file.get_tensor("clot_plane_k"))}
                for n, k in enumerate(at.get(int(z)) for z in z_n):
                    if k is not None:
                        out[n] = clots[k : k + 1][0]
        return out


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

    @property
    def masked(self) -> int:
        """Number of exams with a clot mask."""
        return sum(exam.masked for exam in self.exams)


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
                names = [*_TENSORS, *(n for n in _CLOT_TENSORS if n in file.keys())]  # noqa: SIM118
                intact = _content(*(file.get_tensor(name) for name in names)) == said
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
    clots = _clots(exam.mask_path, volume, source_input, spec) if exam.mask_path else {}
    # Without an identifier in the headers each study is taken for a patient of its own.
    identity = f"patient|{loaded.patient_id}" if loaded.patient_id else f"study|{exam.study_uid}"
    facts = loaded.facts
    tensors: dict[str, NDArray[Any]] = {
        "hu_zyx": hu_zyx,
        "image_pe_z": np.array(loaded.image_pe_z),
        "exam_l": exam.exam_vector,
        **clots,
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
        "content": _content(*tensors.values()),
        "clot_sha256": _content(*clots.values()) if clots else "",
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


def _clots(
    path: Path, volume: CtVolume, source_input: ExamInput, spec: ModelSpec
) -> dict[str, NDArray[Any]]:
    """Bring a mask to the stored planes by the very steps that bring the Hounsfield units there."""
    try:
        mask_zyx = load_mask(path, volume)
    except PermanentError as error:
        raise BadExamError("bad-mask", str(error)) from None
    image: Any = nib.load(path)
    if not mask_zyx.any() and np.any(image.dataobj):
        raise BadExamError("bad-mask", f"mask {path.name}: it lies outside the images")
    box = source_input.box
    coded_zyx = np.where(
        mask_zyx[:, box.top : box.bottom, box.left : box.right], PADDING_HU + _CLOT_HU, PADDING_HU
    ).astype(np.int16)
    # The lungs' box is cut already, and clots lie outside the lungs as masks of them go.
    same = ExamInput(replace(spec, lung="none"), coded_zyx, volume.spacing_mm)
    slabs, rows = [], []
    for start in range(0, same.plan.planes, _SLAB):
        planes = same.planes_hu(start, min(start + _SLAB, same.plan.planes))
        share = np.rint((planes - PADDING_HU) * (255 / _CLOT_HU)).clip(0, 255).astype(np.uint8)
        held = np.flatnonzero(share.any(axis=(1, 2)))
        slabs.append(share[held])
        rows.append(start + held)
    return {
        "clot_kyx": np.concatenate(slabs),
        "clot_plane_k": np.concatenate(rows).astype(np.int64),
    }


def _open(path: Path) -> tuple[CachedExam, str] | None:
    """Read an exam's shard but its pixels; None where it is not there or not whole."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("pe_triage", "null"))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                return None
            image_pe_z = file.get_tensor("image_pe_z")
            exam_l = file.get_tensor("exam_l")
            sha = header.get("clot_sha256", "")
            clot_planes = len(file.get_tensor("clot_plane_k")) if sha else 0
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
        clot_sha256=sha,
        clot_planes=clot_planes,
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
    if exam.mask_path is not None:
        try:
            stat = exam.mask_path.stat()
        except OSError as error:
            raise BadExamError("bad-mask", error.strerror or "cannot be read") from None
        hasher.update(f"\nmask {stat.st_size} {stat.st_mtime_ns}".encode())
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
                "clot_planes": exam.clot_planes if exam.masked else None,
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
