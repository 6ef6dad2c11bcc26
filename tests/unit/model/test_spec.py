from __future__ import annotations

import json

import pytest

from pe_triage.errors import BundleError
from pe_triage.model.spec import ATTENTION_BILSTM, SPECS, ModelSpec


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_named_spec_survives_json(name: str) -> None:
    spec = SPECS[name]
    assert spec.name == name
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_default_is_the_papers() -> None:
    assert ATTENTION_BILSTM.windows == ((-600, 1500), (100, 700), (40, 400))
    assert (ATTENTION_BILSTM.pooling, ATTENTION_BILSTM.head) == ("attention", "sequence")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "unknown key colour"),
        ({"pooling": "median"}, "pooling must be one of"),
        ({"pooling": ["mean"]}, "pooling must be one of"),
        ({"size": 250}, "multiple of the stride"),
        ({"size": True}, "size must be a positive integer"),
        ({"dense_dim": 0}, "dense_dim must be a positive integer"),
        ({"sequence_hidden": "128"}, "sequence_hidden must be a positive integer"),
        ({"windows": []}, "windows"),
        ({"windows": [[40, 0]]}, "width positive"),
        ({"windows": [[40]]}, "wrong kind"),
        ({"windows": 3}, "wrong kind"),
        ({"dropout": 1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"std": 0}, "std"),
        ({"mean": None}, "wrong kind"),
        ({"mean": float("inf")}, "mean"),
        ({"backbone": ""}, "backbone"),
        ({"backbone": "hf-hub:someone/something"}, "plain name"),
        ({"backbone": "local-dir:/etc"}, "plain name"),
    ],
)
def test_a_wrong_value_is_one_line(change: dict[str, object], said: str) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        ModelSpec.from_json({**ATTENTION_BILSTM.to_json(), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [None, [], "x", {}])
def test_what_is_no_spec_is_refused(document: object) -> None:
    with pytest.raises(BundleError):
        ModelSpec.from_json(document)
