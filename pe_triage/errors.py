"""One exception tree. Attributes carry the facts; two branches drive retry.

`RetryableError` says that the same work may succeed later (a peer is down, a file system is full);
`PermanentError` says that repeating it cannot help. `InputError` is what a person gave us: the
command line turns it into one line on stderr and exit code 2.
"""

from __future__ import annotations

from datetime import datetime


class PeTriageError(Exception):
    """Base of every error that this package raises on purpose.

    Parameters
    ----------
    message
        One line that names what is wrong, in words for the person who must act on it. It must not
        carry patient identity: messages reach logs.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class RetryableError(PeTriageError):
    """The same work may succeed later."""


class PermanentError(PeTriageError):
    """Repeating the same work cannot succeed."""


class InputError(PermanentError):
    """Wrong usage, configuration or input; exit code 2."""


class ConfigurationError(InputError):
    """A setting is unknown, malformed or out of range; the message names its key."""


class StudyNotFoundError(InputError):
    """No study of that UID is known to this node."""

    def __init__(self, study_uid: str) -> None:
        super().__init__(f"unknown study: {study_uid}")
        self.study_uid = study_uid


class ImagesNotHeldError(InputError):
    """A study cannot be analysed again: files of its images were removed.

    Parameters
    ----------
    missing
        How many images.
    removed_at
        When.
    """

    def __init__(self, study_uid: str, missing: int, removed_at: datetime | None) -> None:
        when = "" if removed_at is None else f" (removed {removed_at:%Y-%m-%d})"
        self.reason = f"{missing} of its images are no longer held here{when}"
        super().__init__(
            f"{study_uid} cannot be analysed: {self.reason}; "
            "send the study here again from the PACS"
        )
        self.study_uid = study_uid
        self.missing = missing


class BundleError(InputError):
    """A model bundle is missing, malformed, or not the one its card describes."""


class SchemaError(InputError):
    """The database is empty, outdated or newer than this program."""


class InvalidInstanceError(PermanentError):
    """A received or read object is not a usable DICOM instance.

    Parameters
    ----------
    message
        What is wrong.
    status
        The DIMSE status that a C-STORE SCP answers (PS3.4 Annex B.2.3): ``0xA900`` data set does
        not match SOP class, ``0xC000`` cannot understand.
    """

    def __init__(self, message: str, *, status: int = 0xC000) -> None:
        super().__init__(message)
        self.status = status
        self.study_uid: str | None = None
        """Of the object, where it could be read so far: people find it by its study."""
        self.sop_instance_uid: str | None = None


class ImagingError(PermanentError):
    """A series cannot be turned into a volume; the message is the reason shown to people."""


class SpoolError(RetryableError):
    """An instance could not be made durable; the SCP answers A700 (out of resources)."""


class DeviceFaultError(RetryableError):
    """The computing device failed: out of memory, or gone.

    Parameters
    ----------
    message
        What it said.
    process_is_lost
        Nothing more can be computed in this process: a CUDA context does not outlive its errors,
        running out of memory excepted.
    """

    def __init__(self, message: str, *, process_is_lost: bool) -> None:
        super().__init__(message)
        self.process_is_lost = process_is_lost


class PeerError(PeTriageError):
    """A DICOM peer did not do what it was asked.

    Parameters
    ----------
    message
        What happened.
    status
        DIMSE status of the response where one came, else None.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class DeliveryError(PeerError):
    """A destination did not take an object."""


class RetryableDeliveryError(DeliveryError, RetryableError):
    """Try again later: no connection, a time-out, or a status such as A7xx."""


class PermanentDeliveryError(DeliveryError, PermanentError):
    """The destination refused the object for good; the delivery is parked where people see it."""


class QueryError(PeerError):
    """A peer did not answer a question (C-FIND) so that the answer can be used."""


class QueryUnavailableError(QueryError, RetryableError):
    """Ask again later: no connection, no answer in time, or out of resources."""


class QueryRefusedError(QueryError, PermanentError):
    """The peer does not answer such questions, or answers what cannot be understood."""


class LeaseLostError(PermanentError):
    """Another worker owns the job now: this one's result must be thrown away (fencing)."""
