"""Volume to prediction: windows and resize, stage 1 in batches, stage 2, labels, decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS, CtVolume, ExamPrediction, ModelIdentity
from pe_triage.errors import PermanentError
from pe_triage.imaging.windows import Window, window_channels
from pe_triage.infer.choice import choose_runtime, make_runtime
from pe_triage.infer.recall import Key, Recall, embed_the_rest, encoder_identity
from pe_triage.infer.runtime import SliceRuntime, stage_two
from pe_triage.model.bundle import load_bundle
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import decide
from pe_triage.model.inputs import ExamInput
from pe_triage.model.labels import consistent_probabilities
from pe_triage.model.network import ExamNetwork
from pe_triage.model.outputs import attention_to_slices, to_slices
from pe_triage.model.units import UnitPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """A prediction, and what explaining it needs.

    Attributes
    ----------
    feat_zd
        float32 (units, features), the embeddings that stage 2 saw; read-only. Units are slices
        for most specs.
    plan
        How units and slices belong together; None where units are the slices.
    unlikeness
        How far the embeddings lie from those of the bundle's calibration exams, in units of its
        limit (`pe_triage.model.reference`); None where the bundle holds no reference.
    """

    prediction: ExamPrediction
    feat_zd: NDArray[np.float32]
    plan: UnitPlan | None = None
    unlikeness: float | None = None

    def __post_init__(self) -> None:
        self.feat_zd.setflags(write=False)


class Predictor:
    """A loaded bundle that answers for volumes; not for use from several threads at once.

    Parameters
    ----------
    bundle_path
        Directory of the bundle; verified before use.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` for stage 1. Stage 2 takes milliseconds and always
        runs on the CPU: the same answer with and without a GPU, and cuDNN's LSTM has no backward
        in evaluation mode, which Grad-CAM needs.
    runtime
        ``auto``, ``pytorch`` or ``openvino`` for stage 1 (`pe_triage.infer.choice`).
    batch_size
        Units (slices, or windows of them) prepared and encoded at once; bounds the memory whatever
        the volume's length. None leaves it to the runtime.
    threads
        Threads of stage 1, and of torch in this process.

    Raises
    ------
    BundleError
        The bundle cannot be used.
    ConfigurationError
        The device or the runtime is not here.
    """

    def __init__(
        self,
        bundle_path: Path,
        device: str = "auto",
        *,
        runtime: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        choose_runtime(runtime, device)  # before the bundle, which takes longer
        bundle = load_bundle(bundle_path)
        self._path = bundle_path
        self._card = bundle.card
        self._network = bundle.network
        self._reference = bundle.reference
        self._windows = tuple(
            Window(level_hu=level, width_hu=width) for level, width in bundle.card.spec.windows
        )
        self._runtime: SliceRuntime = make_runtime(
            bundle.network.encoder,
            bundle.card.spec,
            runtime=runtime,
            device=device,
            batch_size=batch_size,
            threads=threads,
        )
        self._identity = bundle.card.identity
        self._recall: Recall | None = None

    @property
    def identity(self) -> ModelIdentity:
        """Which model answers."""
        return self._identity

    @property
    def path(self) -> Path:
        """Directory of the bundle."""
        return self._path

    @property
    def card(self) -> BundleCard:
        """The bundle's card."""
        return self._card

    @property
    def network(self) -> ExamNetwork:
        """The network; its stage 2 lies on the CPU."""
        return self._network

    @property
    def runtime(self) -> SliceRuntime:
        """What runs stage 1."""
        return self._runtime

    def remember(self, directory: Path) -> Recall:
        """Use embeddings kept in `directory` from now on, where they have the same bits.

        Raises
        ------
        ValueError
            The spec's units are no single whole slices, or the runtime's numbers for one of them
            depend on what comes with it.
        """
        if not (self._card.spec.is_plain_slices and self._runtime.info.independent):
            raise ValueError("embeddings of single slices cannot be kept for this model")
        self._recall = Recall(
            directory,
            encoder_identity(self._card, self._runtime.info),
            self._network.embedding_dim,
        )
        return self._recall

    def images(self, hu_zyx: NDArray[np.int16]) -> NDArray[np.float32]:
        """Prepare single slices: (z, c, size, size) in [0, 1].

        Raises
        ------
        ValueError
            The spec's units are no single whole slices: `input` prepares those.
        """
        if not self._card.spec.is_plain_slices:
            raise ValueError("this model's units are not single slices: use Predictor.input")
        return window_channels(hu_zyx, self._windows, self._card.spec.size)

    def input(self, volume: CtVolume) -> ExamInput:
        """Return the volume as this model's units; nothing is computed before it is asked for."""
        return ExamInput(self._card.spec, volume.hu_zyx, volume.spacing_mm)

    def embed(
        self, volume: CtVolume, *, beat: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        """Stage 1: the embeddings (units, features) of a volume.

        Parameters
        ----------
        beat
            Called before each batch; what it raises ends the run.
        """
        exam = self.input(volume)
        return self._embed(exam.images, exam.plan.units, beat)

    def _recalled(
        self,
        volume: CtVolume,
        recall: Recall,
        beat: Callable[[], None] | None,
        keys: Sequence[Key | None],
    ) -> NDArray[np.float32]:
        def embed(slices: Sequence[int]) -> NDArray[np.float32]:
            chosen = np.asarray(slices)
            return self._embed(
                lambda start, stop: self.images(volume.hu_zyx[chosen[start:stop]]),
                len(chosen),
                beat,
            )

        return embed_the_rest(volume.hu_zyx, volume.series_uid, recall, embed, keys)

    def _embed(
        self,
        images: Callable[[int, int], NDArray[np.float32]],
        units: int,
        beat: Callable[[], None] | None,
    ) -> NDArray[np.float32]:
        step = self._runtime.batch_size
        parts = []
        # The next batch is prepared while this one is encoded: neither holds the GIL.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare") as ahead:
            coming = ahead.submit(images, 0, step)
            for start in range(0, units, step):
                if beat is not None:
                    beat()
                batch = coming.result()
                if start + step < units:
                    coming = ahead.submit(images, start + step, start + 2 * step)
                parts.append(self._runtime.embed(batch))
        return np.concatenate(parts)

    def predict(
        self,
        volume: CtVolume,
        *,
        beat: Callable[[], None] | None = None,
        keys: Sequence[Key | None] = (),
    ) -> Inference:
        """Answer for one volume; the same volume gives the same answer.

        Parameters
        ----------
        keys
            What `Recall.key` gives of its slices, where that is known; see `remember`.

        Raises
        ------
        PermanentError
            The network's output is not a number: no answer may be made of that.
        """
        if not volume.hu_zyx.size:
            raise PermanentError("the model needs at least one slice")
        exam = self.input(volume)
        feat_zd = (
            self._embed(exam.images, exam.plan.units, beat)
            if self._recall is None
            else self._recalled(volume, self._recall, beat, keys)
        )
        plan = None if exam.plan.is_identity else exam.plan
        return Inference(
            prediction=self.conclude(feat_zd, plan),
            feat_zd=feat_zd,
            plan=plan,
            unlikeness=None if self._reference is None else self._reference.distance(feat_zd),
        )

    @torch.inference_mode()
    def conclude(
        self, feat_zd: NDArray[np.float32], plan: UnitPlan | None = None
    ) -> ExamPrediction:
        """Stage 2: the prediction, given the embeddings of all units foot to head.

        Parameters
        ----------
        plan
            How units and slices belong together; None where units are the slices.

        Raises
        ------
        PermanentError
            No slices, or an output that is not a number.
        ValueError
            The spec's units are not slices, and no plan was given.
        """
        if feat_zd.ndim != 2 or not len(feat_zd):
            raise PermanentError("the model needs at least one slice")
        if plan is None and self._card.spec.encoder == "window":
            raise ValueError("this model's units are not single slices: give their plan")
        with stage_two():
            logits = self._network.exam_logits(torch.from_numpy(feat_zd.copy())[None])
            image_bz, attention_bz = logits.image_bz, logits.attention_bz
            if plan is not None:
                image_bz = to_slices(image_bz, plan)
                attention_bz = attention_to_slices(attention_bz, plan)
        probabilities = consistent_probabilities(
            image_bz, logits.exam_bl, temperatures=self._card.temperatures
        )
        slices_z = probabilities.image_bz[0].numpy()
        attention_z = attention_bz[0].numpy()
        exam_l = probabilities.exam_bl[0].numpy()
        pe = float(probabilities.pe_b[0])
        if not all(np.isfinite(a).all() for a in (slices_z, attention_z, exam_l, pe)):
            raise PermanentError("the model's output is not a number; nothing was concluded")
        exam = {label: float(p) for label, p in zip(EXAM_LABELS, exam_l, strict=True)}
        thresholds = dict(self._card.thresholds)
        served = decide(slices_z, exam, pe, thresholds)
        return ExamPrediction(
            slice_probability_z=slices_z,
            attention_z=attention_z,
            exam_probability=exam,
            pe_probability=pe,
            findings=served.findings,
            thresholds=thresholds,
            model=self._identity,
        )
