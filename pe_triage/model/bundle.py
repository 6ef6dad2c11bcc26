"""A model bundle: a directory with ``weights.safetensors`` and ``card.json``.

Where it was calibrated, ``reference.safetensors`` besides: what tells exams unlike the
calibration's (`pe_triage.model.reference`).

Nothing in it is executed: safetensors holds tensors only (no pickle), the card is JSON. Loading
verifies the SHA-256 of weights and reference before it reads them, and every mismatch is a
`BundleError` of one line. This module imports torch only where it loads or saves weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pe_triage import __version__
from pe_triage.errors import BundleError
from pe_triage.model.card import CARD_NAME, WEIGHTS_NAME, BundleCard, read_card
from pe_triage.model.reference import REFERENCE_NAME, EmbeddingReference

if TYPE_CHECKING:
    import torch

    from pe_triage.model.network import ExamNetwork

__all__ = [
    "Bundle",
    "BundleCard",
    "load_bundle",
    "read_card",
    "save_bundle",
    "verify_weights",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A loaded bundle: its card, and the network in evaluation mode, float32.

    `reference` is None where the bundle was never calibrated, or before references were made.
    """

    card: BundleCard
    network: ExamNetwork
    path: Path
    reference: EmbeddingReference | None = None


def save_bundle(
    path: Path,
    state: Mapping[str, torch.Tensor],
    card: BundleCard,
    *,
    created_at: datetime,
    replace_existing: bool = False,
    reference: EmbeddingReference | None = None,
) -> BundleCard:
    """Write a bundle so that it is there as a whole or not at all.

    Parameters
    ----------
    path
        The bundle's directory; its parents are made.
    state
        `ExamNetwork.state_dict`; tensors are stored as they are, on the CPU.
    card
        The card; its ``weights_sha256``, ``reference`` and ``created`` are filled in here.
    created_at
        Aware time that is written to the card.
    replace_existing
        Put this bundle in the place of one that exists.
    reference
        Kept beside the weights, if given.

    Returns
    -------
    BundleCard
        The card as written.

    Raises
    ------
    BundleError
        The directory exists and is not to be replaced, or cannot be written.
    """
    import torch
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    weights = save(tensors, metadata={"format": "pt"})
    versions = {
        "pe_triage": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    judged = None if reference is None else reference.to_bytes()
    described = None
    if reference is not None and judged is not None:
        described = reference.describe(judged)
    card = replace(
        card,
        reference=described,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        created={"at": created_at.isoformat(), "versions": versions},
    )
    text = json.dumps(card.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    scratch = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        scratch.mkdir(parents=True)
        _write_durably(scratch / WEIGHTS_NAME, weights)
        if judged is not None:
            _write_durably(scratch / REFERENCE_NAME, judged)
        _write_durably(scratch / CARD_NAME, text.encode())
        if replace_existing and path.exists():
            aside = scratch.with_name(scratch.name + ".old")
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        scratch.rename(path)
    except OSError as error:
        if path.is_dir() and not replace_existing:
            raise BundleError(f"model bundle {path}: already exists") from None
        raise BundleError(f"model bundle {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return card


def verify_weights(path: Path, card: BundleCard) -> bytes:
    """Read the weights of the bundle at `path` and check them against its card.

    The bytes that were hashed are the bytes returned: nothing can come between.

    Raises
    ------
    BundleError
        The file is missing, unreadable, or not the one that the card describes.
    """
    try:
        content = (path / WEIGHTS_NAME).read_bytes()
    except OSError as error:
        raise BundleError(
            f"model bundle {path}: {WEIGHTS_NAME}: {error.strerror or error}"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.weights_sha256:
        raise BundleError(
            f"model bundle {path}: {WEIGHTS_NAME} has SHA-256 {digest[:12]}…, "
            f"its card says {card.weights_sha256[:12]}…"
        )
    return content


def load_bundle(path: Path, device: str = "cpu") -> Bundle:
    """Load a bundle after verifying it.

    Parameters
    ----------
    path
        The bundle's directory.
    device
        torch device of the network.

    Raises
    ------
    BundleError
        Anything missing, altered, of an unknown format, of another shape, or not a number.
    """
    card = read_card(path)
    content = verify_weights(path, card)

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from pe_triage.model.network import ExamNetwork

    try:
        state = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise BundleError(f"model bundle {path}: {WEIGHTS_NAME} cannot be read ({line})") from None
    with torch.random.fork_rng(devices=[]):  # building draws weights that are thrown away
        network = ExamNetwork(card.spec)
    problem = _mismatch(network.state_dict(), state)
    if problem:
        raise BundleError(f"model bundle {path}: {problem}")
    network.load_state_dict(state, strict=True)
    reference = _load_reference(path, card, network.embedding_dim)
    network = network.eval().requires_grad_(False).to(device)
    return Bundle(card=card, network=network, path=path, reference=reference)


def _load_reference(path: Path, card: BundleCard, dim: int) -> EmbeddingReference | None:
    """Read the reference that the card names, if it names one.

    A bundle that lost it is refused: it would answer on anything, and nobody would notice.
    """
    if card.reference is None:
        return None
    try:
        content = (path / REFERENCE_NAME).read_bytes()
        reference = EmbeddingReference.from_bytes(content, card.reference)
    except OSError as error:
        raise BundleError(
            f"model bundle {path}: {REFERENCE_NAME}: {error.strerror or error}"
        ) from None
    except BundleError as error:
        raise BundleError(f"model bundle {path}: {error}") from None
    if reference.embedding_dim != dim:
        raise BundleError(
            f"model bundle {path}: {REFERENCE_NAME} is of embeddings of "
            f"{reference.embedding_dim}, the network's are of {dim}"
        )
    return reference


def _mismatch(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Say in words how the tensors found are not those that the spec needs."""
    import torch

    for words, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("does not know", sorted(found.keys() - expected.keys())),
    ):
        if names:
            subject = "weights file" if words == "lacks" else "spec"
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"the {subject} {words} tensor {names[0]}{more}"
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            return (
                f"tensor {name} is {tuple(tensor.shape)} {tensor.dtype}, "
                f"the spec needs {tuple(wanted.shape)} {wanted.dtype}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"tensor {name} holds values that are not finite numbers"
    return None


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
