"""The named specs: every seed system as data over one set of modules.

`SPECS` holds what is built and trained, `NOTES` where it comes from, what its source reports, and
what was chosen where the source is silent or contradicts itself. Notes are prose about a spec and
no part of it: they change no bundle's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pe_triage.model.schedule import Schedule
from pe_triage.model.specification import (
    HEADS,
    LUNG_WINDOW,
    MEDIASTINAL_WINDOW,
    PE_WINDOW,
    PLAIN,
    POOLINGS,
    R3D18,
    SEQUENCES,
    STRIDES,
    ModelSpec,
)

__all__ = [
    "ATTENTION_BILSTM",
    "HEADS",
    "LUNG_WINDOW",
    "MEDIASTINAL_WINDOW",
    "NOTES",
    "PE_WINDOW",
    "POOLINGS",
    "SEQUENCES",
    "SPECS",
    "STRIDES",
    "ModelSpec",
    "Schedule",
    "SpecNotes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecNotes:
    """Where a spec comes from.

    Attributes
    ----------
    source
        The document it follows.
    choices
        What was chosen where the source is silent or contradicts itself.
    published
        Figures that the source reports on its own data.
    """

    source: str
    choices: tuple[str, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)


ATTENTION_BILSTM: Final = ModelSpec(name="attention-bilstm")
"""The default: the two-stage attention-based CNN-LSTM of the seed paper."""

_ATTENTION_GUIDED: Final = ModelSpec(
    name="attention-guided-resnet",
    backbone="resnet18",
    stride=16,
    windows=(PE_WINDOW,),
    planes=3,
    size=384,
    pooling="max",
    stage1=Schedule(
        loss="image+attention", batch=48, batch_of="units", attention_weight=1.0,
        sampling="balanced",
    ),
    stage2=Schedule(loss="exam", lr=1e-3, batch=16, epochs=50),
)  # fmt: skip

_LSTM_VS_TCN_1: Final = Schedule(loss="image", lr=1e-4, batch=48, batch_of="units", epochs=10)
_LSTM_VS_TCN_2: Final = Schedule(loss="challenge", lr=1e-4, batch=16, epochs=100)
_EFFNET: Final = ModelSpec(
    name="effnet",
    size=224,
    lung="mask",
    head="cnn-max",
    stage1=_LSTM_VS_TCN_1,
    stage2=_LSTM_VS_TCN_2,
    operating_point="youden",
)
_R3D18: Final = replace(
    _EFFNET,
    name="r3d18",
    backbone=R3D18,
    stride=16,
    encoder="window",
    window_slices=32,
    window_step=32,
    image_outputs="slices",
    stage1=replace(_LSTM_VS_TCN_1, batch=4, epochs=20),
)
_BILSTM_128: Final = {"head": "sequence", "dense": False, "sequence_hidden": 128}
_TCN_128: Final = {**_BILSTM_128, "sequence": "tcn", "sequence_layers": 3, "kernel": 5,
                   "causal": True}  # fmt: skip
_CHUNKS_64: Final = {"sequence_fit": "chunks", "sequence_length": 64}

_MULTITASK: Final = ModelSpec(
    name="multitask-r3d18-tcn",
    backbone=R3D18,
    stride=16,
    encoder="window",
    window_slices=10,
    window_step=10,
    size=192,
    slice_mm=1.0,
    lung="box",
    neighbours="differences",
    sequence="tcn",
    sequence_layers=2,
    sequence_hidden=128,
    kernel=3,
    causal=True,
    dense=False,
    pooling="label-attention+max",
    dropout=0.2,
    stage1=Schedule(loss="image", lr=4e-4, batch=16, batch_of="units", epochs=20),
    stage2=Schedule(
        loss="challenge", lr=5e-4, scheduler="step", step_epochs=20, gamma=0.9, batch=64, epochs=200
    ),
)

_NAMED: Final[tuple[tuple[ModelSpec, SpecNotes], ...]] = (
    (
        ATTENTION_BILSTM,
        SpecNotes(
            source="attention_cnn_lstm",
            choices=(
                "The EfficientNet's depth is not stated: B0.",
                "Image size is not stated: 256, that of the public JPEG set of the challenge.",
                "Widths of LSTM, dense layer and attention are not stated: 128, 128, 64.",
                "Stage 1's loss is the challenge's in the paper, under which slices of negative "
                "exams weigh nothing; the training room may use image+exam instead and says so.",
            ),
            published={"exam_auc_rspect": 0.82, "exam_auc_external": 0.95, "accuracy": 0.88},
        ),
    ),
    (
        replace(ATTENTION_BILSTM, name="mean-bilstm", pooling="mean"),
        SpecNotes(
            source="attention_cnn_lstm, baseline 2",
            choices=("Without attention slices are taken to be averaged.",),
            published={"exam_auc_external": 0.94, "accuracy": 0.65},
        ),
    ),
    (
        replace(ATTENTION_BILSTM, name="max-bilstm", pooling="max"),
        SpecNotes(source="a variation of attention_cnn_lstm, with maximum pooling"),
    ),
    (
        replace(ATTENTION_BILSTM, name="cnn-max", head="cnn-max"),
        SpecNotes(
            source="attention_cnn_lstm, baseline 1",
            published={"exam_auc_external": 0.5, "accuracy": 0.74},
        ),
    ),
    (
        _ATTENTION_GUIDED,
        SpecNotes(
            source="attention_guided_resnet (abstract only)",
            choices=(
                "Depth: ResNet-18, cut at stride 16, so that the attention loss has a map of "
                "24 x 24 cells to act on.",
                "Slab: [z-1, z, z+1] in the PE window, 384 x 384.",
                "Attention loss: the image head's class-activation map against the clot mask on "
                "the map's grid, with weight 1, where a mask is known.",
                "Recurrent network: BiLSTM of 128; maximum pooling, since one clot is enough.",
                "Stage 2 learns from exam labels alone, as the abstract says; the image head is "
                "taught only through G = max u_k, so its probabilities on slices are weak.",
            ),
            published={"exam_auc": 0.812},
        ),
    ),
    (
        _EFFNET,
        SpecNotes(
            source="lstm_vs_tcn",
            choices=(
                "Image size is not stated: 224, EfficientNet-B0's own.",
                "The three windows are named, one per channel. The mask's elements are not stated: "
                "see pe_triage.imaging.lungs.",
                "The paper predicts slices only; exam labels are this spec's addition, by the slice"
                " of maximum confidence.",
            ),
            published={"slice_auc": 0.833, "accuracy": 0.771, "sensitivity": 0.781,
                       "specificity": 0.769},
        ),
    ),
    (
        replace(_EFFNET, name="effnet-lstm", **_BILSTM_128, **_CHUNKS_64),  # type: ignore[arg-type]
        SpecNotes(
            source="lstm_vs_tcn, model A",
            choices=(
                "Learns from 64 slices: the exam is cut into chunks of 64 that meet in pooling.",
                "The LSTM's output goes straight to the heads; pooling is not stated (no exam "
                "label there): attention.",
                "Stage 2's rate is not stated: 1e-4, as in stage 1.",
            ),
            published={"slice_auc": 0.895, "accuracy": 0.829, "sensitivity": 0.832,
                       "specificity": 0.823},
        ),
    ),
    (
        replace(_EFFNET, name="effnet-tcn", **_TCN_128, **_CHUNKS_64),  # type: ignore[arg-type]
        SpecNotes(
            source="lstm_vs_tcn, model A",
            choices=("As effnet-lstm. The TCN is causal: padded on the left, as the text says.",),
            published={"slice_auc": 0.876, "accuracy": 0.802, "sensitivity": 0.818,
                       "specificity": 0.802},
        ),
    ),
    (
        _R3D18,
        SpecNotes(
            source="lstm_vs_tcn",
            choices=(
                "Image size is not stated: 224, as for the EfficientNet it is compared with.",
                "Windows of 32 slices do not overlap, the last is padded with zeros, as the text "
                "says. It classifies each of the slices, so a window gives 32 image logits.",
                "The paper predicts slices only; exam labels are an addition, by the window of "
                "maximum confidence.",
            ),
            published={"slice_auc": 0.868, "accuracy": 0.789, "sensitivity": 0.809,
                       "specificity": 0.775},
        ),
    ),
    (
        replace(_R3D18, name="r3d18-lstm", neighbours="concatenate", **_BILSTM_128),  # type: ignore[arg-type]
        SpecNotes(
            source="lstm_vs_tcn, model B",
            choices=(
                "Windows i-1, i, i+1 concatenated: 3 x 512 = 1536 (the text's 1516 is a slip), "
                "zeros beyond the ends. The whole exam is one sequence.",
            ),
            published={"slice_auc": 0.914, "accuracy": 0.834, "sensitivity": 0.871,
                       "specificity": 0.817},
        ),
    ),
    (
        replace(_R3D18, name="r3d18-tcn", neighbours="concatenate", **_TCN_128),  # type: ignore[arg-type]
        SpecNotes(
            source="lstm_vs_tcn, model B",
            choices=("As r3d18-lstm.",),
            published={"slice_auc": 0.921, "accuracy": 0.879, "sensitivity": 0.867,
                       "specificity": 0.870},
        ),
    ),
    (
        ModelSpec(
            name="plain-cnn",
            backbone=PLAIN,
            stride=8,
            conv_channels=(512, 256, 128),
            embedding_dim=256,
            size=256,
            mean=0.0,
            std=1.0,
            head="cnn-max",
            stage1=Schedule(
                loss="image", lr=1e-3, batch=50, batch_of="units", epochs=10, sampling="balanced"
            ),
        ),
        SpecNotes(
            source="plain_cnn",
            choices=(
                "Target is pe_present_on_image and the split is by patient: the published split "
                "is by image and its target was the no-PE column, so its recall is probably "
                "specificity.",
                "The JPEG set's three windows are the default's; neither its eight bits nor its "
                "compression are imitated.",
                "Rate: Keras's default for Adam, 1e-3. The map is flattened, not pooled, so "
                "Grad-CAM takes its gradient through the dense layer.",
                "Exam labels are an addition, by the slice of maximum confidence.",
            ),
            published={"slice_accuracy": 0.916, "slice_recall": 0.945, "slice_f1": 0.919},
        ),
    ),
    (
        _MULTITASK,
        SpecNotes(
            source="two_phase_multitask",
            choices=(
                "Input windows are not stated in what we hold: the default's three, as R3D-18 "
                "takes three channels.",
                "192 x 192: the lungs' bounding box with a margin, padded to a square, is scaled "
                "to 192. A crop of 192 mm out of it would leave peripheral lung unseen.",
                "Slices are resampled to 1 mm; in the plane the box decides the pixel.",
                "A sequence of 40 chunks is 400 mm: enough for any chest. Longer exams are not "
                "cut, since a causal TCN and a GRU have no length.",
                "Per-label attention shown per slice is the mean over the nine labels, half and "
                "half with the share of the maxima.",
            ),
            published={
                "window_auc": 0.926, "negative_exam_for_pe": 0.894, "indeterminate": 0.862,
                "chronic_pe": 0.687, "acute_and_chronic_pe": 0.858, "central_pe": 0.948,
                "leftsided_pe": 0.892, "rightsided_pe": 0.923, "rv_lv_ratio_gte_1": 0.871,
                "rv_lv_ratio_lt_1": 0.851, "challenge_loss": 0.2177,
            },
        ),
    ),
    (
        replace(
            _MULTITASK, name="multitask-r3d18-gru", sequence="gru", sequence_layers=1,
            causal=False,
        ),
        SpecNotes(
            source="two_phase_multitask",
            choices=("As the TCN's. The GRU runs in one direction, as the causal TCN; 128 wide.",),
        ),
    ),
    (
        ModelSpec(
            name="rsna-first",
            backbone="seresnext50_32x4d",
            windows=(PE_WINDOW,),
            planes=3,
            size=576,
            sequence="bigru",
            sequence_hidden=512,
            dense=False,
            neighbours="differences",
            sequence_fit="resize",
            sequence_length=192,
            pooling="attention+max",
            stage1=Schedule(loss="image", lr=4e-4, batch=64, batch_of="units", epochs=1),
            stage2=Schedule(loss="challenge", lr=5e-4, batch=64, epochs=20),
        ),
        SpecNotes(
            source="the challenge's first place, from its public write-up",
            choices=(
                "Every exam is resized to 192 steps, shorter ones too; image logits come back to "
                "slices by the same interpolation.",
                "Width of the attention module is not stated: 64. Rates, batches and epochs are "
                "ours; the first stage saw 1.4 million slices an epoch.",
                "The whole slice is the input: its lung localiser is left out.",
            ),
            published={"slice_auc": 0.962},
        ),
    ),
)  # fmt: skip

SPECS: Final[Mapping[str, ModelSpec]] = {spec.name: spec for spec, _ in _NAMED}
"""Every named spec; the paper's two baselines stand beside its proposal."""

NOTES: Final[Mapping[str, SpecNotes]] = {spec.name: notes for spec, notes in _NAMED}
"""Source, choices and published figures of each of `SPECS`."""
