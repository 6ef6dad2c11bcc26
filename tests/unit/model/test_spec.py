from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pe_triage.errors import BundleError
from pe_triage.model.spec import ATTENTION_BILSTM, NOTES, SPECS, ModelSpec, Schedule


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_named_spec_survives_json(name: str) -> None:
    spec = SPECS[name]
    assert spec.name == name
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_table_of_seed_systems_is_complete() -> None:
    assert set(SPECS) >= {
        "attention-bilstm", "mean-bilstm", "cnn-max", "attention-guided-resnet", "effnet",
        "effnet-lstm", "effnet-tcn", "r3d18", "r3d18-lstm", "r3d18-tcn", "plain-cnn",
        "multitask-r3d18-tcn", "multitask-r3d18-gru", "rsna-first",
    }  # fmt: skip
    assert set(NOTES) == set(SPECS)
    assert all(n.source for n in NOTES.values())
    assert NOTES["r3d18-tcn"].published["slice_auc"] == 0.921


def test_specs_of_bundles_made_before_keep_their_json_and_so_their_identity() -> None:
    """Keys that came later are written only where they say something."""
    document = ATTENTION_BILSTM.to_json()
    assert sorted(document) == [
        "attention_dim", "backbone", "dense_dim", "dropout", "head", "mean", "name", "pooling",
        "sequence", "sequence_hidden", "sequence_layers", "size", "std", "stride", "windows",
    ]  # fmt: skip
    later = {"encoder": "slice", "stage1": Schedule().to_json(), "conv_channels": []}
    assert ModelSpec.from_json({**document, **later}) == ATTENTION_BILSTM
    assert "stage1" in SPECS["effnet"].to_json()
    other = replace(ATTENTION_BILSTM, stage2=Schedule(lr=1e-3)).to_json()
    assert set(other) - set(document) == {"stage2"}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_reduced_spec_keeps_its_structure(name: str) -> None:
    spec = SPECS[name]
    small = spec.reduced(64, hidden=8, window=4)
    assert (small.name, small.size) == (f"{name}-64", 64)
    assert ModelSpec.from_json(json.loads(json.dumps(small.to_json()))) == small
    for key in ("encoder", "sequence", "pooling", "neighbours", "head", "lung", "planes", "stride",
                "sequence_fit", "image_outputs", "causal", "dense", "stage1"):  # fmt: skip
        assert getattr(small, key) == getattr(spec, key)
    assert spec.reduced(spec.size) == replace(spec, name=f"{name}-{spec.size}")


def test_the_published_schedules() -> None:
    """Figures of the table in the project's survey of sources."""
    one, two = SPECS["r3d18-tcn"].stage1, SPECS["r3d18-tcn"].stage2
    assert (one.lr, one.batch, one.batch_of, one.epochs) == (1e-4, 4, "units", 20)
    assert (two.batch, two.epochs) == (16, 100)
    one = SPECS["effnet-lstm"].stage1
    assert (one.lr, one.batch, one.epochs) == (1e-4, 48, 10)
    one, two = SPECS["multitask-r3d18-gru"].stage1, SPECS["multitask-r3d18-gru"].stage2
    assert (one.lr, one.batch, one.epochs) == (4e-4, 16, 20)
    assert (two.lr, two.scheduler, two.step_epochs, two.gamma) == (5e-4, "step", 20, 0.9)
    assert (two.batch, two.epochs, two.optimiser) == (64, 200, "adam")
    assert SPECS["plain-cnn"].stage1.sampling == "balanced"
    assert SPECS["attention-guided-resnet"].stage1.attention_weight > 0


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
        ({"backbone": "r3d_18"}, "encoder window goes with backbone r3d_18"),
        ({"encoder": "window"}, "encoder window goes with"),
        ({"window_slices": 4}, "need the encoder window"),
        ({"planes": 2}, "planes must be odd"),
        ({"image_outputs": "slices"}, "needs the encoder window"),
        ({"sequence_fit": "resize"}, "sequence_length above 1"),
        ({"sequence_length": -1}, "an integer of at least 0"),
        ({"conv_channels": [8]}, "conv_channels and embedding_dim"),
        ({"conv_channels": 8}, "wrong kind"),
        ({"backbone": "plain", "conv_channels": ["x"], "embedding_dim": 4}, "conv_channels"),
        (
            {"backbone": "plain", "conv_channels": [8], "embedding_dim": 4},
            "the plain CNN halves its map",
        ),
        ({"slice_mm": -1}, "slice_mm"),
        ({"slice_mm": "x"}, "wrong kind"),
        ({"causal": True}, "causal is a TCN's"),
        ({"causal": 1}, "true or false"),
        ({"sequence": "tcn", "kernel": 4}, "odd kernel"),
        ({"lung": "left"}, "lung must be one of"),
        ({"stage1": 3}, "schedule: not a JSON object"),
        ({"stage1": {"rate": 1}}, "schedule: unknown key rate"),
        ({"stage2": {"lr": 0}}, "lr must be positive"),
        ({"stage2": {"lr": "fast"}}, "wrong kind"),
        ({"stage2": {"loss": "hinge"}}, "loss must be one of"),
        ({"stage2": {"epochs": 0}}, "epochs must be a positive integer"),
        ({"stage2": {"weight_decay": -1}}, "weight_decay"),
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
