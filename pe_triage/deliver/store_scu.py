"""C-STORE of many objects in one association, each with an outcome of its own (PS3.4 Annex B)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import cast

from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext, build_context

from pe_triage.deliver.outcomes import Sent, all_unreachable
from pe_triage.deliver.requestor import MAX_CONTEXTS, RequestorOptions, open_association
from pe_triage.deliver.statuses import Verdict, classify, describe
from pe_triage.domain import Delivery, Destination
from pe_triage.errors import PermanentDeliveryError, RetryableDeliveryError

_RECONNECTS = 1
"""An object whose sending ends the association must not keep those behind it from being sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _EncodedObject:
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    dataset_offset: int


class _AssociationLostError(Exception):
    """The association ended while an object was on its way."""


class DicomSender:
    """Sends result files to storage SCPs.

    Parameters
    ----------
    calling_aet
        Our AE title.
    options
        Time-outs.
    """

    def __init__(self, calling_aet: str, options: RequestorOptions | None = None) -> None:
        self._calling_aet = calling_aet
        self._options = options or RequestorOptions()

    def send(
        self, destination: Destination, deliveries: Sequence[Delivery]
    ) -> Iterator[tuple[int, Sent]]:
        """Send `deliveries` in their order; each outcome is yielded as soon as it is known.

        Every delivery gets exactly one outcome, whatever happens to the association. Nothing is
        raised for what a peer does.

        Yields
        ------
        tuple of int and Sent
            ``delivery_id`` and its outcome.
        """
        readable: list[tuple[Delivery, _EncodedObject]] = []
        for delivery in deliveries:
            try:
                readable.append((delivery, _read_header(delivery)))
            except PermanentDeliveryError as error:
                yield delivery.delivery_id, Sent(verdict=Verdict.PARK, error=error.message)
        pending = readable
        reconnects = 0
        while pending:
            try:
                association = open_association(
                    destination,
                    calling_aet=self._calling_aet,
                    contexts=_contexts([encoded for _, encoded in pending]),
                    options=self._options,
                )
            except RetryableDeliveryError as error:
                yield from all_unreachable([item for item, _ in pending], error.message)
                return
            except PermanentDeliveryError as error:
                yield from _all(pending, Verdict.PARK, error.message)
                return
            done = 0
            try:
                for delivery, encoded in pending:
                    outcome = self._send_one(destination, association, encoded, done + 1)
                    done += 1
                    yield delivery.delivery_id, outcome
            except _AssociationLostError as error:
                line = f"{destination}: {error}"
                yield pending[done][0].delivery_id, Sent(verdict=Verdict.RETRY, error=line)
                pending = pending[done + 1 :]
                reconnects += 1
                if reconnects > _RECONNECTS:
                    yield from _all(pending, Verdict.RETRY, line)
                    return
            else:
                return
            finally:
                if association.is_established:
                    association.release()

    def _send_one(
        self,
        destination: Destination,
        association: Association,
        encoded: _EncodedObject,
        message_id: int,
    ) -> Sent:
        context = _choose_context(association, encoded)
        if context is None:
            name = UID(encoded.sop_class_uid).name
            return Sent(
                verdict=Verdict.PARK, error=f"{destination}: does not accept {name} from us"
            )
        try:
            data = _dataset_bytes(encoded, str(context.transfer_syntax[0]))
        except OSError as error:
            return Sent(
                verdict=Verdict.RETRY, error=f"cannot read {encoded.path}: {error.strerror}"
            )
        except PermanentDeliveryError as error:
            return Sent(verdict=Verdict.PARK, error=error.message)
        request = C_STORE()
        request.MessageID = (message_id - 1) % 0xFFFF + 1
        request.AffectedSOPClassUID = encoded.sop_class_uid
        request.AffectedSOPInstanceUID = encoded.sop_instance_uid
        request.Priority = 2
        request.DataSet = BytesIO(data)
        status = _exchange(
            association, request, cast(int, context.context_id), self._options.dimse_timeout_s
        )
        verdict = classify(status).verdict
        if verdict is Verdict.SENT:
            return Sent(verdict=verdict, status=status)
        return Sent(verdict=verdict, error=describe(status), status=status)


def _all(
    pending: Sequence[tuple[Delivery, _EncodedObject]], verdict: Verdict, error: str
) -> Iterator[tuple[int, Sent]]:
    for delivery, _ in pending:
        yield delivery.delivery_id, Sent(verdict=verdict, error=error)


def _exchange(association: Association, request: C_STORE, context_id: int, timeout_s: float) -> int:
    """Send a request whose data set is encoded already, and wait for its response.

    As pynetdicom's `send_c_store`, which would decode the file and encode it anew: what is sent
    twice must be the same bytes twice.
    """
    if not association.is_established:
        raise _AssociationLostError("association was aborted")
    # The reactor would take the response from the queue.
    association._reactor_checkpoint.clear()
    while not association._is_paused and association.is_alive():
        time.sleep(0.0001)
    try:
        association.dimse.send_msg(request, context_id)
        _, response = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    if response is None:
        if association.acse.is_aborted() or not association.is_established:
            raise _AssociationLostError("association was aborted")
        association.abort()
        raise _AssociationLostError(f"no answer to C-STORE within {timeout_s:g} s")
    status = response.Status if isinstance(response, C_STORE) else None
    if status is None or response.MessageIDBeingRespondedTo != request.MessageID:
        association.abort()
        raise _AssociationLostError("invalid answer to C-STORE")
    return int(status)


def _contexts(objects: Sequence[_EncodedObject]) -> list[PresentationContext]:
    """One context for each SOP class and syntax, so that each is accepted or refused alone."""
    wanted: dict[tuple[str, str], None] = {}
    for encoded in objects:
        own = encoded.transfer_syntax_uid
        wanted[encoded.sop_class_uid, own] = None
        if own in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            wanted[encoded.sop_class_uid, str(ExplicitVRLittleEndian)] = None
            wanted[encoded.sop_class_uid, str(ImplicitVRLittleEndian)] = None
    return [build_context(sop_class, syntax) for sop_class, syntax in list(wanted)[:MAX_CONTEXTS]]


def _choose_context(
    association: Association, encoded: _EncodedObject
) -> PresentationContext | None:
    accepted = {
        str(context.transfer_syntax[0]): context
        for context in association.accepted_contexts
        if str(context.abstract_syntax) == encoded.sop_class_uid
    }
    own = encoded.transfer_syntax_uid
    if own in accepted:
        return accepted[own]
    if own in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            if str(syntax) in accepted:
                return accepted[str(syntax)]
    return None


def _read_header(delivery: Delivery) -> _EncodedObject:
    """File meta of a delivery's file.

    Raises
    ------
    PermanentDeliveryError
        The file is gone or is not the object that the delivery names.
    """
    path = delivery.path
    try:
        with path.open("rb") as file:
            head = file.read(144)
            if len(head) < 144 or head[128:132] != b"DICM" or head[132:138] != b"\2\0\0\0UL":
                raise PermanentDeliveryError(f"{path} is not a DICOM file")
            offset = 144 + int.from_bytes(head[140:144], "little")
            file.seek(0)
            meta = dcmread(file, stop_before_pixels=True, specific_tags=[]).file_meta
        encoded = _EncodedObject(
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
            path=path,
            dataset_offset=offset,
        )
    except FileNotFoundError:
        raise PermanentDeliveryError(f"{path} no longer exists") from None
    except OSError as error:
        raise PermanentDeliveryError(f"cannot read {path}: {error.strerror}") from error
    except PermanentDeliveryError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged bytes
        raise PermanentDeliveryError(f"{path} has no usable file meta information") from error
    if encoded.sop_instance_uid != delivery.sop_instance_uid:
        raise PermanentDeliveryError(f"{path} holds another object than the one to deliver")
    return encoded


def _dataset_bytes(encoded: _EncodedObject, syntax: str) -> bytes:
    """Return the data set in `syntax`: as it lies in the file wherever the peer takes that."""
    if syntax == encoded.transfer_syntax_uid:
        with encoded.path.open("rb") as file:
            file.seek(encoded.dataset_offset)
            return file.read()
    converted = encode(dcmread(encoded.path), UID(syntax).is_implicit_VR, True)
    if converted is None:
        raise PermanentDeliveryError(
            f"{encoded.path} cannot be encoded in {UID(syntax).name}, the only syntax accepted"
        )
    return converted
