"""Embeddings of whole exams, extracted once with the best weights of stage 1."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pe_triage.model.network import ExamNetwork
from pe_triage.training.cache import CachedExam
from pe_triage.training.distributed import World
from pe_triage.training.inputs import embed_exam
from pe_triage.training.reporting import Reporter


def embed_all(
    network: ExamNetwork,
    exams: Sequence[CachedExam],
    run: Path,
    world: World,
    reporter: Reporter,
    precision: torch.dtype,
) -> Path:
    """Write the embeddings of `exams`, shared out among the processes; return their directory.

    The directory's name follows from the encoder's weights, so embeddings of other weights are
    never taken for these; exams that are there already are kept.
    """
    encoder = network.encoder.to(world.device).eval()
    directory = run / "embeddings" / _digest(encoder)
    directory.mkdir(parents=True, exist_ok=True)
    mine = world.mine(exams)
    reporter.begin("embeddings", len(mine))
    for done, exam in enumerate(mine, start=1):
        path = directory / f"{exam.study_uid}.safetensors"
        if not _whole(path):
            with torch.autocast(world.device.type, precision, enabled=precision != torch.float32):
                feat_zd = embed_exam(network, exam, world.device)
            scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
            save_file({"feat_zd": feat_zd.contiguous()}, scratch)
            scratch.replace(path)
        reporter.step(done)
    world.wait()
    return directory


def _digest(encoder: torch.nn.Module) -> str:
    hasher = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()[:16]


def _whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "feat_zd" in file.keys()  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
