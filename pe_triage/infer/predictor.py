"""Volume to prediction: windows and resize, stage 1 in batches, stage 2, labels, decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS, CtVolume, ExamPrediction, ModelIdentity
from pe_triage.errors import PermanentError
from pe_triage.imaging.windows import Window, window_channels
from pe_triage.infer.runtime import SliceRuntime, TorchRuntime, choose_device, stage_two
from pe_triage.model.bundle import load_bundle
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import decide
from pe_triage.model.labels import consistent_probabilities
from pe_triage.model.network import ExamNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """A prediction, and what explaining it needs.

    Attributes
    ----------
    feat_zd
        float32 (slices, features), the embeddings that stage 2 saw; read-only.
    """

    prediction: ExamPrediction
    feat_zd: NDArray[np.float32]

    def __post_init__(self) -> None:
        self.feat_zd.setflags(write=False)


class Predictor:
    """A loaded bundle that answers for volumes; not for use from several threads at once.

    Parameters
    ----------
    bundle_path
        Directory of the bundle; verified before use.
    device
        ``auto``, ``cpu`` or ``cuda`` for stage 1. Stage 2 takes milliseconds and always runs on
        the CPU: the same answer with and without a GPU, and cuDNN's LSTM has no backward in
        evaluation mode, which Grad-CAM needs.
    batch_size
        Slices prepared and encoded at once; bounds the memory whatever the volume's length.
    threads
        Threads of torch in this process.

    Raises
    ------
    BundleError
        The bundle cannot be used.
    ConfigurationError
        The device is not here.
    """

    def __init__(
        self,
        bundle_path: Path,
        device: str = "auto",
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        where = choose_device(device)
        bundle = load_bundle(bundle_path)
        self._path = bundle_path
        self._card = bundle.card
        self._network = bundle.network
        self._windows = tuple(
            Window(level_hu=level, width_hu=width) for level, width in bundle.card.spec.windows
        )
        self._runtime: SliceRuntime = TorchRuntime(
            bundle.network.encoder, where, batch_size=batch_size, threads=threads
        )
        self._identity = bundle.card.identity

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

    def images(self, hu_zyx: NDArray[np.int16]) -> NDArray[np.float32]:
        """Prepare slices as the network wants them: (z, c, size, size) in [0, 1]."""
        return window_channels(hu_zyx, self._windows, self._card.spec.size)

    def embed(
        self, volume: CtVolume, *, beat: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        """Stage 1: the embeddings (slices, features) of a volume.

        Parameters
        ----------
        beat
            Called before each batch; what it raises ends the run.
        """
        step = self._runtime.batch_size
        parts = []
        for start in range(0, volume.hu_zyx.shape[0], step):
            if beat is not None:
                beat()
            parts.append(self._runtime.embed(self.images(volume.hu_zyx[start : start + step])))
        return np.concatenate(parts)

    def predict(self, volume: CtVolume, *, beat: Callable[[], None] | None = None) -> Inference:
        """Answer for one volume; the same volume gives the same answer.

        Raises
        ------
        PermanentError
            The network's output is not a number: no answer may be made of that.
        """
        feat_zd = self.embed(volume, beat=beat)
        return Inference(prediction=self.conclude(feat_zd), feat_zd=feat_zd)

    @torch.inference_mode()
    def conclude(self, feat_zd: NDArray[np.float32]) -> ExamPrediction:
        """Stage 2: the prediction, given the embeddings of all slices foot to head.

        Raises
        ------
        PermanentError
            No slices, or an output that is not a number.
        """
        if feat_zd.ndim != 2 or not len(feat_zd):
            raise PermanentError("the model needs at least one slice")
        with stage_two():
            logits = self._network.exam_logits(torch.from_numpy(feat_zd.copy())[None])
        probabilities = consistent_probabilities(
            logits.image_bz, logits.exam_bl, temperatures=self._card.temperatures
        )
        slices_z = probabilities.image_bz[0].numpy()
        attention_z = logits.attention_bz[0].numpy()
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
