from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from pe_triage.domain import IntendedUse
from pe_triage.errors import BundleError
from pe_triage.model import builtin
from pe_triage.model.builtin import materialize_untrained, untrained_network
from pe_triage.model.bundle import load_bundle, read_card, save_bundle
from pe_triage.model.card import CARD_NAME, WEIGHTS_NAME, BundleCard
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.network import ExamNetwork
from pe_triage.model.spec import ATTENTION_BILSTM

SMALL = replace(
    ATTENTION_BILSTM, name="small", size=64, sequence_hidden=8, dense_dim=8, attention_dim=4
)
UNTRAINED_WEIGHTS = "9871991032f6f86ca8083ac6ed45190a3f77700207ce0c4ae667f48a01a1e706"
UNTRAINED_CARD = "510a1a60a6d009a7189fea0d87e3dc52935d0723afe85497b6146aa7f497cd94"
NOW = datetime(2026, 2, 3, tzinfo=UTC)
CARD = BundleCard(
    name="small",
    version="1",
    spec=SMALL,
    thresholds=dict.fromkeys(THRESHOLD_KEYS, 0.5),
    intended_use=IntendedUse.DEMONSTRATION,
    training_data="none",
    weights_sha256="0" * 64,
)


@pytest.fixture(scope="module")
def network() -> ExamNetwork:
    return untrained_network(SMALL)


@pytest.fixture
def bundle(tmp_path: Path, network: ExamNetwork) -> Path:
    save_bundle(tmp_path / "b", network.state_dict(), CARD, created_at=NOW)
    return tmp_path / "b"


def test_a_saved_bundle_loads_with_the_same_weights(bundle: Path, network: ExamNetwork) -> None:
    loaded = load_bundle(bundle)
    assert loaded.card.identity.name == "small"
    assert not loaded.network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["b"]


def test_saving_over_a_bundle_needs_to_be_asked_for(bundle: Path, network: ExamNetwork) -> None:
    with pytest.raises(BundleError, match="already exists"):
        save_bundle(bundle, network.state_dict(), CARD, created_at=NOW)
    card = replace(CARD, version="2")
    save_bundle(bundle, network.state_dict(), card, created_at=NOW, replace_existing=True)
    assert read_card(bundle).version == "2"
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["b"]


def test_identity_changes_with_what_changes_answers_only(bundle: Path) -> None:
    card = read_card(bundle)
    others = [
        replace(card, thresholds={**card.thresholds, "pe": 0.2}),
        replace(card, temperatures={"pe": 1.5}),
        replace(card, weights_sha256="1" * 64),
        replace(card, spec=replace(SMALL, dropout=0.0)),
        replace(card, intended_use=IntendedUse.RESEARCH),
        replace(card, calibrated=True),
        replace(card, version="2"),
    ]
    assert len({c.sha256 for c in (card, *others)}) == len(others) + 1
    assert replace(card, created={"at": "another day"}).sha256 == card.sha256
    # The spelling of the file does not matter, nor that of a number.
    document = json.loads((bundle / CARD_NAME).read_text())
    (bundle / CARD_NAME).write_text(json.dumps(document, sort_keys=True))
    assert read_card(bundle).sha256 == card.sha256
    again = replace(card, temperatures={"pe": 1}), replace(card, temperatures={"pe": 1.0})
    assert again[0].sha256 == again[1].sha256


def test_a_card_names_the_recipe_of_the_lungs_where_it_is_used() -> None:
    plain = CARD.to_json()["preprocessing"]
    assert "lungs" not in plain
    card = replace(CARD, spec=replace(SMALL, lung="mask"))
    assert set(card.to_json()["preprocessing"]) - set(plain) == {"lungs"}
    assert BundleCard.from_json(card.to_json()) == card
    harmed = {**card.to_json(), "preprocessing": plain}
    with pytest.raises(BundleError, match="preprocessing does not fit"):
        BundleCard.from_json(harmed)


def _flip_a_byte(path: Path) -> None:
    content = bytearray((path / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (path / WEIGHTS_NAME).write_bytes(content)


def _edit(change: Mapping[str, Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        document = json.loads((path / CARD_NAME).read_text())
        (path / CARD_NAME).write_text(json.dumps({**document, **change}))

    return edit


def _drop(key: str) -> Callable[[Path], None]:
    def drop(path: Path) -> None:
        document = json.loads((path / CARD_NAME).read_text())
        del document[key]
        (path / CARD_NAME).write_text(json.dumps(document))

    return drop


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_flip_a_byte, "weights.safetensors has SHA-256 .*, its card says"),
        (lambda p: (p / WEIGHTS_NAME).unlink(), "weights.safetensors: No such file"),
        (lambda p: (p / WEIGHTS_NAME).write_bytes(b""), "SHA-256"),
        (lambda p: (p / CARD_NAME).unlink(), "card.json: No such file"),
        (lambda p: (p / CARD_NAME).write_text("{"), "not JSON"),
        (lambda p: (p / CARD_NAME).write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda p: (p / CARD_NAME).write_text("[" * 100_000), "not JSON"),
        (lambda p: (p / CARD_NAME).write_text("[]"), "not a JSON object"),
        (_edit({"format": "pe-triage-bundle/9"}), "unknown"),
        (_edit({"extra": 1}), "unknown key extra"),
        (_drop("metrics"), "unknown key metrics"),
        (_edit({"intended_use": "clinical"}), "intended_use 'clinical'"),
        (_edit({"intended_use": "research"}), "intended_use_words does not fit"),
        (_edit({"thresholds": {}}), "thresholds missing or unknown"),
        (_edit({"thresholds": dict.fromkeys(THRESHOLD_KEYS, 1.0)}), r"must lie in \(0, 1\)"),
        (_edit({"thresholds": dict.fromkeys(THRESHOLD_KEYS, "x")}), r"must lie in \(0, 1\)"),
        (_edit({"temperatures": {"pe": 0}}), "temperature of pe"),
        (_edit({"temperatures": {"nose": 1}}), "unknown label nose"),
        (_edit({"temperatures": []}), "temperatures must be an object"),
        (_edit({"calibrated": "yes"}), "calibrated must be true or false"),
        (_edit({"labels": {}}), "labels"),
        (_edit({"preprocessing": {}}), "preprocessing does not fit"),
        (_edit({"spec": {**SMALL.to_json(), "x": 1}}), "unknown key x"),
        (_edit({"weights_sha256": "zz"}), "weights_sha256"),
        (_edit({"weights_sha256": 7}), "weights_sha256"),
        (_edit({"name": " "}), "name must be"),
        (_edit({"metrics": {"auc": float("nan")}}), "not JSON"),
    ],
)
def test_a_harmed_bundle_is_refused_in_one_line(
    bundle: Path, harm: Callable[[Path], None], said: str
) -> None:
    harm(bundle)
    with pytest.raises(BundleError, match=said) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("stage2.exam_head.bias"), "lacks tensor stage2.exam_head.bias"),
        (lambda s: s.update(spare=torch.zeros(1)), "does not know tensor spare"),
        (lambda s: s.update({"stage2.exam_head.bias": torch.zeros(8)}), "the spec needs"),
        (lambda s: s.update({"stage2.exam_head.bias": torch.zeros(9).half()}), "the spec needs"),
        (
            lambda s: s.update({"stage2.exam_head.bias": torch.full((9,), torch.nan)}),
            "not finite numbers",
        ),
    ],
)
def test_weights_that_do_not_fit_the_spec_are_refused(
    tmp_path: Path, network: ExamNetwork, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    state = dict(network.state_dict())
    change(state)
    save_bundle(tmp_path / "b", state, CARD, created_at=NOW)
    with pytest.raises(BundleError, match=said):
        load_bundle(tmp_path / "b")


def test_weights_that_are_no_safetensors_are_refused(bundle: Path) -> None:
    import hashlib

    (bundle / WEIGHTS_NAME).write_bytes(b"not tensors")
    _edit({"weights_sha256": hashlib.sha256(b"not tensors").hexdigest()})(bundle)
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(bundle)


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_a_path_that_is_no_bundle_is_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="no such directory"):
        read_card(tmp_path / path)


def test_reading_a_card_imports_no_torch(bundle: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pe_triage.model.bundle import read_card; "
        f"read_card(Path({str(bundle)!r})).identity; "
        "assert not {'torch', 'timm', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_untrained_bundle_is_the_same_in_every_process(tmp_path: Path) -> None:
    card = read_card(materialize_untrained(tmp_path / "a"))
    here = materialize_untrained(tmp_path / "a", SMALL)
    script = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(2); "
        "torch.manual_seed(5); from pe_triage.model.builtin import materialize_untrained; "
        "from pe_triage.model.spec import ModelSpec; import json; "
        "materialize_untrained(Path(sys.argv[1]), ModelSpec.from_json(json.loads(sys.argv[2])))"
    )
    spec = json.dumps(SMALL.to_json())
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "b"), spec], check=True, timeout=120
    )
    small, other = read_card(here), read_card(tmp_path / "b" / here.name)
    assert other == replace(small, created=other.created)
    assert other.sha256 == small.sha256
    assert card.intended_use is IntendedUse.UNTRAINED
    assert not card.calibrated
    # golden: results name this identity, so a version of ours must not change it by accident
    assert card.weights_sha256 == UNTRAINED_WEIGHTS
    assert card.sha256 == UNTRAINED_CARD


def test_materialising_leaves_the_callers_random_state_alone(network: ExamNetwork) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    untrained_network(SMALL)
    assert torch.equal(torch.rand(3), expected)


def test_many_at_once_make_one_sound_bundle(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: materialize_untrained(tmp_path, SMALL), range(4)))
    assert len(paths) == 1
    load_bundle(paths.pop())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_sound_bundle_is_kept_and_a_harmed_one_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = materialize_untrained(tmp_path, SMALL)
    before = (path / CARD_NAME).stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "untrained_network", lambda _: pytest.fail("made again"))
        assert materialize_untrained(tmp_path, SMALL) == path
    assert (path / CARD_NAME).stat().st_mtime_ns == before
    _flip_a_byte(path)
    assert materialize_untrained(tmp_path, SMALL) == path
    load_bundle(path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"Not a directory|File exists"):
        materialize_untrained(tmp_path / "file", SMALL)


def test_untrained_activations_neither_die_nor_explode() -> None:
    """On images unlike those that settled it: gradients, stripes, noise."""
    network = untrained_network()
    generator = torch.Generator().manual_seed(3)
    ramp = torch.linspace(0, 1, 256).expand(256, 256)
    images = torch.stack([ramp, ramp.T, 1 - ramp, (ramp * 20 % 1)])[:, None].repeat(1, 3, 1, 1)
    images = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    with torch.no_grad():
        maps = network.encoder.maps(images)
        out = network(images)
    assert 0.1 < maps.std() < 30
    assert (maps.std(dim=(2, 3)).mean(dim=1) > 0.05).all(), "maps have shape"
    assert out.image_bz.std() > 1e-2, "slices differ"
    assert out.image_bz.abs().max() < 10
    assert out.exam_bl.abs().max() < 10
