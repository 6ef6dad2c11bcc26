from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pe_triage.domain import CtVolume
from pe_triage.infer.predictor import Predictor
from pe_triage.model.builtin import materialize_untrained
from pe_triage.model.spec import ATTENTION_BILSTM

SPEC = replace(ATTENTION_BILSTM, name="small", size=128, sequence_hidden=16, dense_dim=16)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialize_untrained(tmp_path_factory.mktemp("bundles"), SPEC)


@pytest.fixture(scope="session")
def predictor(bundle_path: Path) -> Predictor:
    return Predictor(bundle_path, "cpu", batch_size=4)


@pytest.fixture(scope="session")
def make_volume() -> Callable[..., CtVolume]:
    def make(shape_zyx: tuple[int, int, int] = (9, 128, 128), z_mm: float = 5.0) -> CtVolume:
        rng = np.random.default_rng(4)
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_zyx), indexing="ij")
        hu = np.where(y**2 + (0.8 * x) ** 2 < 0.7, 40, -1000) + rng.normal(0, 15, shape_zyx)
        hu[(y + 0.1) ** 2 + (np.abs(x) - 0.45) ** 2 < 0.1 + 0.05 * z] = -850
        hu[(y - 0.3 * z) ** 2 + (x - 0.2) ** 2 < 0.02] = 350
        return CtVolume(
            hu_zyx=hu.astype(np.int16),
            spacing_mm=(z_mm, 0.7, 0.7),
            affine_lps=np.diag([0.7, 0.7, z_mm, 1.0]),
            sop_instance_uids=tuple(f"1.2.{k}" for k in range(shape_zyx[0])),
            series_uid="1.2",
        )

    return make
