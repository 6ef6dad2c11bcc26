"""What an instance is to its study: an image to analyse, something beside it, or our own result.

A PACS may route our results back to us, and dose reports and presentation states arrive whenever
they like. Neither may look like a study that has grown.
"""

from __future__ import annotations

from pe_triage.domain import InstanceFacts, InstanceRole

CT_STORAGE_UIDS = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.840.10008.5.1.4.1.1.2.1",
        "1.2.840.10008.5.1.4.1.1.2.2",
    }
)
"""CT, Enhanced CT and Legacy Converted Enhanced CT Image Storage (PS3.4 Annex B.5)."""

OWN_NAME = "pe-triage"
"""Manufacturer (0008,0070) and Manufacturer's Model Name (0008,1090) of our results."""


def role_of(sop_class_uid: str, facts: InstanceFacts) -> InstanceRole:
    """Role of one received instance."""
    if sop_class_uid in CT_STORAGE_UIDS:
        return InstanceRole.IMAGE
    if facts.manufacturer == OWN_NAME and facts.model_name == OWN_NAME:
        return InstanceRole.OWN_RESULT
    return InstanceRole.OTHER
