"""Stage 2's sequence models: embeddings in anatomical order to ĥ.

Axes: ``b`` exams, ``z`` units foot to head, ``d`` features. Padding stands at the end of an exam
and is never read: a padded exam gives exactly what it gives alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pe_triage.model.specification import ModelSpec


class SequenceModel(nn.Module):
    """The spec's recurrent network or TCN, then its dense layer where it has one."""

    def __init__(self, spec: ModelSpec, embedding_dim: int) -> None:
        super().__init__()
        self._kind = spec.sequence
        width = spec.sequence_hidden
        if spec.sequence == "tcn":
            self.tcn = TemporalConvolutions(spec, embedding_dim)
            out = width
        else:
            both = spec.sequence.startswith("bi")
            out = width * (2 if both else 1)
            kind, name = (nn.LSTM, "lstm") if "lstm" in spec.sequence else (nn.GRU, "gru")
            recurrent = kind(
                embedding_dim, width, num_layers=spec.sequence_layers, batch_first=True,
                bidirectional=both,
            )  # fmt: skip
            self.add_module(name, recurrent)
        self.dense = nn.Linear(out, spec.dense_dim) if spec.dense else None
        self.dropout = nn.Dropout(spec.dropout)
        self.dim = spec.dense_dim if spec.dense else out

    def forward(self, feat_bzd: Tensor, mask_bz: Tensor | None = None) -> Tensor:
        """Return ĥ (b, z, `dim`); padded units are not read in either direction."""
        if self._kind == "tcn":
            hidden_bzd = self.tcn(feat_bzd, mask_bz)
        else:
            hidden_bzd = self._recur(feat_bzd, mask_bz)
        if self.dense is not None:
            hidden_bzd = torch.relu(self.dense(hidden_bzd))
        out: Tensor = self.dropout(hidden_bzd)
        return out

    @property
    def recurrent(self) -> nn.RNNBase:
        """The recurrent network.

        Raises
        ------
        AttributeError
            The sequence model is a TCN.
        """
        network = self.lstm if "lstm" in self._kind else self.gru
        assert isinstance(network, nn.RNNBase)
        return network

    def _recur(self, feat_bzd: Tensor, mask_bz: Tensor | None) -> Tensor:
        if mask_bz is None:
            hidden: Tensor = self.recurrent(feat_bzd)[0]
            return hidden
        lengths = mask_bz.sum(dim=1).cpu()
        packed = pack_padded_sequence(feat_bzd, lengths, batch_first=True, enforce_sorted=False)
        hidden_bzd, _ = pad_packed_sequence(
            self.recurrent(packed)[0], batch_first=True, total_length=feat_bzd.shape[1]
        )
        return hidden_bzd


class TemporalConvolutions(nn.Module):
    """Temporal convolutional network: levels of dilated residual blocks (Bai et al. 2018)."""

    def __init__(self, spec: ModelSpec, embedding_dim: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            TemporalBlock(
                embedding_dim if level == 0 else spec.sequence_hidden, spec, dilation=2**level
            )
            for level in range(spec.sequence_layers)
        )

    def forward(self, feat_bzd: Tensor, mask_bz: Tensor | None = None) -> Tensor:
        """Return (b, z, channels)."""
        x_bdz = feat_bzd.transpose(1, 2)
        present = None if mask_bz is None else mask_bz[:, None].to(x_bdz.dtype)
        for level in self.levels:
            x_bdz = level(x_bdz, present)
        return x_bdz.transpose(1, 2)


class TemporalBlock(nn.Module):
    """Two weight-normalised dilated convolutions beside an identity (or 1 x 1) path."""

    def __init__(self, before: int, spec: ModelSpec, *, dilation: int) -> None:
        super().__init__()
        width = spec.sequence_hidden
        reach = (spec.kernel - 1) * dilation
        self._padding = (reach, 0) if spec.causal else (reach // 2, reach // 2)
        self.first = NormedConv1d(before, width, spec.kernel, dilation)
        self.second = NormedConv1d(width, width, spec.kernel, dilation)
        self.side = nn.Conv1d(before, width, 1) if before != width else None
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x_bdz: Tensor, present_b1z: Tensor | None) -> Tensor:
        """Return (b, channels, z); what is not present counts as the zeros beyond the ends."""
        out = x_bdz
        for convolution in (self.first, self.second):
            if present_b1z is not None:
                out = out * present_b1z
            out = self.dropout(torch.relu(convolution(functional.pad(out, self._padding))))
        kept = x_bdz if self.side is None else self.side(x_bdz)
        result: Tensor = torch.relu(out + kept)
        return result


class NormedConv1d(nn.Module):
    """A convolution whose weight is a direction and a length (Salimans and Kingma 2016)."""

    def __init__(self, before: int, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self._dilation = dilation
        bound = (before * kernel) ** -0.5
        self.direction = nn.Parameter(torch.empty(width, before, kernel).uniform_(-bound, bound))
        self.length = nn.Parameter(self.direction.detach().norm(dim=(1, 2)))
        self.bias = nn.Parameter(torch.zeros(width))

    @property
    def weight(self) -> Tensor:
        """The kernel, (out, in, taps)."""
        norm = self.direction.norm(dim=(1, 2), keepdim=True)
        kernel: Tensor = self.direction * (self.length[:, None, None] / norm)
        return kernel

    def forward(self, x_bdz: Tensor) -> Tensor:
        """Convolve without padding."""
        return functional.conv1d(x_bdz, self.weight, self.bias, dilation=self._dilation)


def with_neighbours(feat_bzd: Tensor, kind: str, mask_bz: Tensor | None = None) -> Tensor:
    """Put what the spec's `neighbours` names beside each unit's own embedding.

    Parameters
    ----------
    kind
        ``none``: nothing; ``concatenate``: x_{i-1}, x_i, x_{i+1}, zero beyond the exam's ends;
        ``differences``: x_i, x_i - x_{i-1}, x_i - x_{i+1}, zero at its ends.
    mask_bz
        True where a unit exists.

    Returns
    -------
    Tensor
        (b, z, d) or (b, z, 3d).
    """
    if kind == "none":
        return feat_bzd
    present = feat_bzd.new_ones(feat_bzd.shape[:2]) if mask_bz is None else mask_bz
    present = present.to(feat_bzd.dtype)[..., None]
    feat_bzd = feat_bzd * present
    before = functional.pad(feat_bzd, (0, 0, 1, 0))[:, :-1]
    after = functional.pad(feat_bzd, (0, 0, 0, 1))[:, 1:]
    if kind == "concatenate":
        return torch.cat([before, feat_bzd, after], dim=2)
    has_before = functional.pad(present, (0, 0, 1, 0))[:, :-1] * present
    has_after = functional.pad(present, (0, 0, 0, 1))[:, 1:] * present
    return torch.cat(
        [feat_bzd, (feat_bzd - before) * has_before, (feat_bzd - after) * has_after], dim=2
    )


def resize_matrix(lengths_b: Tensor, source: int, target: int, dtype: torch.dtype) -> Tensor:
    """Matrices (b, target, source) of linear interpolation of each exam to `target` steps.

    Both ends' edges meet; each row sums to 1, and columns beyond an exam's length are zero.
    """
    steps = torch.arange(target, device=lengths_b.device, dtype=dtype) + 0.5
    length = lengths_b[:, None].to(dtype)
    position_bn = (steps * length / target - 0.5).clamp(min=0)
    position_bn = torch.minimum(position_bn, length - 1)
    columns = torch.arange(source, device=lengths_b.device, dtype=dtype)
    return (1 - (position_bn[..., None] - columns).abs()).clamp(min=0)


def restore_matrix(lengths_b: Tensor, source: int, target: int, dtype: torch.dtype) -> Tensor:
    """Matrices (b, source, target) that bring `target` steps back to each exam's own units."""
    units = torch.arange(source, device=lengths_b.device, dtype=dtype) + 0.5
    length = lengths_b[:, None].to(dtype)
    position_bz = (units * target / length - 0.5).clamp(0, target - 1)
    columns = torch.arange(target, device=lengths_b.device, dtype=dtype)
    return (1 - (position_bz[..., None] - columns).abs()).clamp(min=0)
