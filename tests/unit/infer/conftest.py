from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pe_triage.domain import CtVolume, IntendedUse
from pe_triage.infer import predictor as predictor_module
from pe_triage.infer.predictor import Predictor
from pe_triage.model.builtin import materialize_untrained, untrained_network
from pe_triage.model.bundle import Bundle
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.encoders import Encoder
from pe_triage.model.network import ExamNetwork, SequenceStage, SliceHeads
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS, ModelSpec

SPEC = replace(ATTENTION_BILSTM, name="small", size=128, sequence_hidden=16, dense_dim=16)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialize_untrained(tmp_path_factory.mktemp("bundles"), SPEC)


@pytest.fixture(scope="session")
def predictor(bundle_path: Path) -> Predictor:
    return Predictor(bundle_path, "cpu", runtime="pytorch", batch_size=4)


@pytest.fixture(scope="session")
def make_volume() -> Callable[..., CtVolume]:
    def make(
        shape_zyx: tuple[int, int, int] = (9, 128, 128), z_mm: float = 5.0, mm: float = 0.7
    ) -> CtVolume:
        rng = np.random.default_rng(4)
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_zyx), indexing="ij")
        hu = np.where(y**2 + (0.8 * x) ** 2 < 0.7, 40, -1000) + rng.normal(0, 15, shape_zyx)
        hu[(y + 0.1) ** 2 + (np.abs(x) - 0.45) ** 2 < 0.1 + 0.05 * z] = -850
        hu[(y - 0.3 * z) ** 2 + (x - 0.2) ** 2 < 0.02] = 350
        return CtVolume(
            hu_zyx=hu.astype(np.int16),
            spacing_mm=(z_mm, mm, mm),
            affine_lps=np.diag([mm, mm, z_mm, 1.0]),
            sop_instance_uids=tuple(f"1.2.{k}" for k in range(shape_zyx[0])),
            series_uid="1.2",
        )

    return make


@pytest.fixture(scope="session")
def network_of() -> Callable[[str], ExamNetwork]:
    """Small untrained network of a named spec; those of one backbone share their encoder.

    An R3D-18 has 33 million parameters at any size, so drawing it for each spec that has one would
    be most of the suite's time.
    """
    encoders: dict[tuple[object, ...], Encoder] = {}
    networks: dict[str, ExamNetwork] = {}

    def make(name: str) -> ExamNetwork:
        if name in networks:
            return networks[name]
        size = 32 if SPECS[name].encoder == "window" else 64
        spec = SPECS[name].reduced(size, hidden=16, window=8)
        key = (spec.backbone, spec.stride, spec.channels, spec.size)
        if key not in encoders:
            networks[name] = untrained_network(spec)
            encoders[key] = networks[name].encoder
            return networks[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(networks))
            with torch.device("meta"):
                network = ExamNetwork(spec)
            network.encoder = encoders[key]
            network.slice_heads = SliceHeads(network.embedding_dim, spec.outputs_per_unit)
            if network.stage2 is not None:
                network.stage2 = SequenceStage(spec, network.embedding_dim)
        networks[name] = network.eval().requires_grad_(False)
        return network

    return make


@pytest.fixture(scope="session")
def predictor_of(network_of: Callable[[str], ExamNetwork]) -> Callable[[str], Predictor]:
    """Predictor of a named spec's small network, as if a bundle had been loaded."""

    def make(name: str, *, runtime: str = "pytorch", **more: int) -> Predictor:
        network = network_of(name)
        spec: ModelSpec = network.spec
        card = BundleCard(
            name=spec.name,
            version="1",
            spec=spec,
            thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.5),
            intended_use=IntendedUse.UNTRAINED,
            training_data="none",
            weights_sha256="0" * 64,
        )
        with pytest.MonkeyPatch.context() as patch:
            loaded = Bundle(card=card, network=network, path=Path("none"))
            patch.setattr(predictor_module, "load_bundle", lambda _: loaded)
            return Predictor(Path("none"), "cpu", runtime=runtime, **more)

    return make
