"""Embeddings of slices that were encoded before their study was complete, found by content.

An embedding is kept under the digest of what the encoder saw: the encoder's identity (bundle,
runtime, processor, this program's version) and the slice's Hounsfield units. So nothing here can
give a volume the embedding of another slice, whatever came twice, in another order, mirrored,
rescaled or under another bundle: at worst nothing is found, and the slice is encoded as ever. Who
hands over a digest that was computed before answers for its being of these very pixels.

A file is only ever appended to, by the one process that made it, and is not synced: what a crash
tears fails its checksum and is encoded again. Files of one series lie in one directory, which goes
when the run of its study has ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pe_triage import __version__
from pe_triage.cores import usable_cores
from pe_triage.infer.runtime import RuntimeInfo
from pe_triage.logs import get_logger
from pe_triage.model.card import RESIZE, BundleCard

KEEP_S: Final = 6 * 3600.0
"""Age at which what no run has claimed is removed: a study is closed long before."""
LIMIT_BYTES: Final = 1 << 30
"""Of all files together: some 200,000 slices of the built-in network."""
CHECKED: Final = 2
"""Slices of each volume that are encoded again, to be compared with what was kept."""

_MAGIC: Final = b"pe-triage embeddings 1\n"
_CHECK_BYTES: Final = 16
_HEAD: Final = struct.Struct(f"<{len(_MAGIC)}s32sI")
_LOCK: Final = "lock"
_SUFFIX: Final = ".emb"

Key = bytes


def encoder_identity(card: BundleCard, runtime: RuntimeInfo) -> bytes:
    """Digest of everything that an embedding's bits depend on, the slice excepted."""
    said = {
        "program": __version__,
        "bundle": card.sha256,
        "weights": card.weights_sha256,
        "spec": asdict(card.spec),
        "resize": RESIZE,
        "runtime": [runtime.name, runtime.version, runtime.device, runtime.precision],
        "numpy": np.__version__,
        "processor": _processor(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).digest()


@cache
def _processor() -> str:
    """Model and instruction sets: libraries choose their kernels by them."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        ):
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "flags", "Features"):
                found.setdefault(name.strip(), value.strip())
    return " ".join((platform.machine(), *(found[name] for name in sorted(found))))


class Recall:
    """The kept embeddings of one encoder.

    Any number of processes may share `directory`; no answer depends on how they share it.

    Parameters
    ----------
    directory
        Made when something is kept. Everything in it may be deleted at any time.
    identity
        As of `encoder_identity`.
    features
        Length of an embedding.
    """

    def __init__(self, directory: Path, identity: bytes, features: int) -> None:
        self._directory = directory
        self._identity = identity
        self._features = features
        self._name = f"{secrets.token_hex(8)}{_SUFFIX}"
        """Of this process's own files: a torn end is never appended to."""

    def key(self, hu_yx: NDArray[np.int16]) -> Key:
        """Digest of a slice in anatomical order, as this encoder would see it."""
        digest = hashlib.sha256(self._identity)
        digest.update(struct.pack("<II", *hu_yx.shape))
        digest.update(np.ascontiguousarray(hu_yx, dtype="<i2").data)
        return digest.digest()

    def keys(self, hu_zyx: NDArray[np.int16], known: Sequence[Key | None] = ()) -> list[Key]:
        """Digest of each slice but those known, on all cores: hashing holds no lock of Python's."""
        known = known or [None] * len(hu_zyx)
        threads = max(1, min(usable_cores(), len(hu_zyx), 8))
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="digest") as pool:
            computed = pool.map(self.key, (s for s, k in zip(hu_zyx, known, strict=True) if not k))
            return [key or next(computed) for key in known]

    def known(self, series_uid: str) -> dict[Key, NDArray[np.float32]]:
        """Everything kept of a series that is whole and of this encoder; never raises."""
        found: dict[Key, NDArray[np.float32]] = {}
        for path in self._files(series_uid):
            with suppress(OSError):
                found.update(self._read(path.read_bytes()))
        return found

    def _read(self, content: bytes) -> Iterator[tuple[Key, NDArray[np.float32]]]:
        if content[: _HEAD.size] != self._head():
            return  # another encoder's, or torn at once
        length = 32 + 4 * self._features + _CHECK_BYTES
        for at in range(_HEAD.size, len(content) - length + 1, length):
            record = content[at : at + length]
            said, check = record[:-_CHECK_BYTES], record[-_CHECK_BYTES:]
            if self._check(said) == check:
                yield said[:32], np.frombuffer(said, dtype="<f4", offset=32)

    def keep(self, series_uid: str, keys: Sequence[Key], feat_nd: NDArray[np.float32]) -> None:
        """Append embeddings.

        Raises
        ------
        OSError
            The file system refused; what was written of it is passed over by `known`.
        """
        if feat_nd.shape != (len(keys), self._features):
            raise ValueError(f"expected {(len(keys), self._features)}, got {feat_nd.shape}")
        records = []
        for key, values in zip(keys, feat_nd, strict=True):
            said = key + values.astype("<f4").tobytes()
            records.append(said + self._check(said))
        path = self._place(series_uid) / self._name
        with path.open("ab", buffering=0) as file:
            head = b"" if file.tell() else self._head()
            file.write(head + b"".join(records))

    def claim(self, series_uid: str) -> Claim | None:
        """Hold a series against other processes; None where another holds it.

        So that two idle workers do not encode the same slices; nothing else depends on it. The
        hold ends with the process, however that ends.

        Raises
        ------
        OSError
            The directory cannot be written.
        """
        place = self._place(series_uid)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return Claim(descriptor)

    def forget(self, series_uids: Iterable[str]) -> None:
        """Remove what is kept of these series; never raises."""
        for series_uid in series_uids:
            shutil.rmtree(self._place(series_uid), ignore_errors=True)

    def sweep(self, now_s: float | None = None) -> int:
        """Remove what is old, then the oldest while all is too large.

        Parameters
        ----------
        now_s
            Seconds since the epoch; default: now.

        Returns
        -------
        int
            Bytes that are left.
        """
        now_s = time.time() if now_s is None else now_s
        held = []
        with suppress(OSError):
            for place in self._directory.iterdir():
                with suppress(OSError):
                    files = [path.stat() for path in place.iterdir()]
                    newest = max((f.st_mtime for f in files), default=place.stat().st_mtime)
                    held.append((newest, sum(f.st_size for f in files), place))
        total = sum(size for _, size, _ in held)
        for newest, size, place in sorted(held):
            if now_s - newest > KEEP_S or total > LIMIT_BYTES:
                shutil.rmtree(place, ignore_errors=True)
                total -= size
        return total

    def _files(self, series_uid: str) -> list[Path]:
        with suppress(OSError):
            return sorted(p for p in self._place(series_uid).iterdir() if p.suffix == _SUFFIX)
        return []

    def _place(self, series_uid: str) -> Path:
        """By digest: a UID comes from outside."""
        return self._directory / hashlib.sha256(series_uid.encode()).hexdigest()[:32]

    def _head(self) -> bytes:
        return _HEAD.pack(_MAGIC, self._identity, self._features)

    def _check(self, said: bytes) -> bytes:
        return hashlib.blake2b(said, digest_size=_CHECK_BYTES, key=self._identity).digest()


class Claim:
    """A series that this process works on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def stands(self) -> bool:
        """Whether its directory is still there: a run that ended has removed it."""
        return os.fstat(self._descriptor).st_nlink > 0

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


def embed_the_rest(
    hu_zyx: NDArray[np.int16],
    series_uid: str,
    recall: Recall,
    embed: Callable[[Sequence[int]], NDArray[np.float32]],
    known: Sequence[Key | None] = (),
) -> NDArray[np.float32]:
    """Put a volume's embeddings together from what is kept and what is not.

    A few of the slices that are kept are encoded again and must agree to the last bit; where one
    does not, nothing that was kept is used.

    Parameters
    ----------
    embed
        Encodes the slices of these indices, in their order.
    known
        Keys of the slices, None for each that must be computed; empty: of all.

    Returns
    -------
    ndarray
        float32 (z, features): the same bits as of ``embed(range(z))``.
    """
    kept: Mapping[Key, NDArray[np.float32]] = recall.known(series_uid)
    everything = range(len(hu_zyx))
    if not kept:
        return embed(everything)
    keys = recall.keys(hu_zyx, known)
    found = [z for z, key in enumerate(keys) if key in kept]
    # Spread over the volume; by position, so that the same volume is checked in the same places.
    step = max(1, len(found) // CHECKED)
    checked = set(found[step // 2 :: step][:CHECKED])
    fresh = [z for z, key in enumerate(keys) if key not in kept or z in checked]
    feat_nd = embed(fresh)
    at = {z: n for n, z in enumerate(fresh)}
    log = get_logger(series_uid=series_uid)
    if any(feat_nd[at[z]].tobytes() != kept[keys[z]].tobytes() for z in checked):
        log.error("ahead.disagrees", slices=len(hu_zyx), kept=len(found))
        return embed(everything)
    log.info("ahead.used", slices=len(hu_zyx), kept=len(found))
    return np.stack([feat_nd[at[z]] if z in at else kept[keys[z]] for z in everything])
