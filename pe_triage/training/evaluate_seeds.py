"""What the source documents report of their own systems on their own data, to stand beside ours.

Nothing here can be compared figure by figure: other patients, other splits, other units. A note
says what is known to be wrong with a source's figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One system of one source.

    Attributes
    ----------
    spec
        Name of the spec that rebuilds it here.
    unit
        What was counted: exam, slice, window or image.
    figures
        Name as in our reports to value; AUCs of labels under ``auc:<label>``.
    """

    source: str
    spec: str
    system: str
    data: str
    unit: str
    figures: Mapping[str, float]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


_ATTENTION = "Attention CNN-LSTM"
_LSTM_TCN = "LSTM vs TCN"
_MULTITASK = "Ma et al. 2022"
_GUIDED = "Attention-guided ResNet"
_PLAIN = "Plain CNN"
_CHALLENGE = "RSNA challenge 2020"
_RSPECT = "RSPECT"
_OWN = "RSPECT, the source's own split"


def _slices(accuracy: float, sensitivity: float, specificity: float, ppv: float, f1: float,
            auc: float) -> dict[str, float]:  # fmt: skip
    return {"auc": auc, "sensitivity": sensitivity, "specificity": specificity, "ppv": ppv,
            "f1": f1, "accuracy": accuracy}  # fmt: skip


def _row(source: str, spec: str, system: str, data: str, unit: str, figures: Mapping[str, float],
         note: str = "") -> PublishedRow:  # fmt: skip
    return PublishedRow(source=source, spec=spec, system=system, data=data, unit=unit,
                        figures=figures, note=note)  # fmt: skip


PUBLISHED: tuple[PublishedRow, ...] = (
    _row(_ATTENTION, "attention-bilstm", "CNN-LSTM with attention", "106 external studies", "exam",
         {"auc": 0.95, "accuracy": 0.88}),
    _row(_ATTENTION, "attention-bilstm", "CNN-LSTM with attention", f"{_RSPECT}, 1,455 validation",
         "exam", {"auc": 0.82, "score": 0.180}, "challenge score stated as below 0.180"),
    _row(_ATTENTION, "attention-bilstm (pooling: mean)", "CNN-LSTM without attention",
         "106 external studies", "exam", {"auc": 0.94, "accuracy": 0.65}),
    _row(_ATTENTION, "attention-bilstm (head: cnn-max)", "CNN alone", "106 external studies",
         "exam", {"auc": 0.5, "accuracy": 0.74}),
    _row(_GUIDED, "attention-guided-resnet", "ResNet with attention loss, then RNN",
         "2,160 studies", "exam", {"auc": 0.812}),
    _row(_LSTM_TCN, "effnet", "EfficientNet-B0", _OWN, "slice",
         _slices(0.7709, 0.7808, 0.7687, 0.1676, 0.2760, 0.8328)),
    _row(_LSTM_TCN, "r3d18", "R3D-18", _OWN, "slice",
         _slices(0.7893, 0.8089, 0.7754, 0.2213, 0.3493, 0.8680)),
    _row(_LSTM_TCN, "effnet-lstm", "EfficientNet-B0 and LSTM", _OWN, "slice",
         _slices(0.8289, 0.8321, 0.8231, 0.2643, 0.4012, 0.8954)),
    _row(_LSTM_TCN, "effnet-tcn", "EfficientNet-B0 and TCN", _OWN, "slice",
         _slices(0.8023, 0.8184, 0.8015, 0.2541, 0.3878, 0.8759)),
    _row(_LSTM_TCN, "r3d18-lstm", "R3D-18 and LSTM", _OWN, "slice",
         _slices(0.8343, 0.8706, 0.8169, 0.2851, 0.4295, 0.9136)),
    _row(_LSTM_TCN, "r3d18-tcn", "R3D-18 and TCN", _OWN, "slice",
         _slices(0.8790, 0.8665, 0.8702, 0.3339, 0.4820, 0.9213)),
    _row(_PLAIN, "plain-cnn", "three convolutions", f"{_RSPECT}, balanced images", "image",
         {"accuracy": 0.916, "sensitivity": 0.945, "f1": 0.919},
         "split by image, so patients leak; the target was the no-PE column, so the recall is "
         "probably a specificity"),
    _row(_MULTITASK, "multitask-r3d18-tcn", "R3D-18, then TCN or GRU", f"{_RSPECT}, own test",
         "exam",
         {"score": 0.2177, "auc:negative_exam_for_pe": 0.894, "auc:indeterminate": 0.862,
          "auc:chronic_pe": 0.687, "auc:acute_and_chronic_pe": 0.858, "auc:central_pe": 0.948,
          "auc:leftsided_pe": 0.892, "auc:rightsided_pe": 0.923, "auc:rv_lv_ratio_gte_1": 0.871,
          "auc:rv_lv_ratio_lt_1": 0.851}),
    _row(_MULTITASK, "multitask-r3d18-tcn", "R3D-18 windows", f"{_RSPECT}, own test", "window",
         {"auc": 0.926, "sensitivity": 0.86, "specificity": 0.85}),
    _row(_CHALLENGE, "rsna-first", "first place: SE-ResNeXt50, then BiGRU", f"{_RSPECT}, own fold",
         "slice", {"auc": 0.962}),
    _row(_CHALLENGE, "", "second, sixth and thirteenth place", f"{_RSPECT}, private test", "exam",
         {"score": 0.150}, "scores 0.150, 0.156 and 0.165"),
)  # fmt: skip
"""In the order of the report."""
