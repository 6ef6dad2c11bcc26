"""What a failure may say in a log or the database."""

from __future__ import annotations

import errno

import pytest

from pe_triage.errors import PermanentError
from pe_triage.node.worker import one_line


def test_a_foreign_error_tells_its_class_and_place_but_no_value():
    with pytest.raises(ValueError, match="Doe") as caught:
        float("Doe^Jane")
    line = one_line(caught.value)
    assert "Doe" not in line
    assert line.startswith("ValueError at ")
    assert ".py:" in line


def test_a_full_disk_is_named_but_not_the_file():
    assert one_line(OSError(errno.ENOSPC, "No space left on device", "Doe.dcm")) == (
        "OSError (No space left on device)"
    )


def test_our_own_error_keeps_its_words():
    assert one_line(PermanentError("two\n lines")) == "two lines"
