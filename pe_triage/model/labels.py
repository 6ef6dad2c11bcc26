r"""Label consistency by construction: any logits in, probabilities that obey RSPECT's rules out.

Axes: ``b`` exams, ``z`` slices, ``l`` the nine labels in the order of `EXAM_LABELS`.

The rules (a label is predicted where p > 0.5, strictly): if any image is predicted, exactly one
RV/LV label, at least one of left/right/central, not both chronic labels, neither negative nor
indeterminate; otherwise exactly one of negative and indeterminate, and no positive label.

**PE.** Negative, indeterminate and positive exclude each other, so the nine logits e hold an
exam-level logit of PE, that of a softmax over (positive = 0, e_neg, e_ind)::

    g   = -log(exp e_neg + exp e_ind)
    u_k = s_k + g                          logit of slice k: its own evidence, shifted by the exam
    G   = max_k u_k                        logit of PE in the exam

So the exam is positive exactly where some slice is, both heads are heard, and P = sigmoid(G) is
the probability of PE (`pe`). Let q = 1 - P.

**A conjunction that keeps 0.5.** A product of two probabilities above 0.5 may lie below it, so
labels conditional on the exam's state cannot be multiplied with it. `conjunction` ∧ is

==========  =======================  =======================
f(a, b)     b <= 1/2                 b >= 1/2
==========  =======================  =======================
a <= 1/2    ab (1 + 4ab)             a (b + 2a (1 - b))
a >= 1/2    b (a + 2b (1 - a))       1/2 + 2 (a - 1/2)(b - 1/2)
==========  =======================  =======================

continuous, symmetric, monotone in each, f(1, b) = b, f(0, b) = 0 as in a product, and f > 1/2
exactly where both a and b are. (min(a, b) would do too, but passes no gradient to the larger.)

**Conditionals**, each made to obey by itself:

* negative r = sigmoid(e_neg - e_ind), indeterminate 1 - r: one side of a half each; with q.
* RV/LV >= 1 v = sigmoid(e_gte - e_lt), < 1 is 1 - v; with P.
* chronic, acute-and-chronic: softmax over (acute = 0, e_chronic, e_both): never two above a half;
  with P.
* left, right, central: sigmoid(e_j + softplus(-max e)): the largest is lifted above a half, the
  others with it; where the largest is well above already nothing moves; with P.

**Ties and rounding.** Which labels are predicted is first decided on logits, with ties broken
(indeterminate before negative: a tie never reassures; RV/LV >= 1 before < 1; the first site of
central, left, right; G = 0 is not PE). Then each probability is held on its side of 0.5: predicted
ones at least `MARGIN` above, others at most 0.5. The margin is far above rounding, so the rules
also survive half precision and a print with three decimals. Gradients pass straight through.

Temperatures (calibration) divide logits of which only the sign decides, so no temperature can
break a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL

MARGIN = 2.0**-10
"""How far above 0.5 a predicted label lies at least: exact in half precision, 0.501 in print."""

LOGIT_BOUND = 1e4
"""Logits are held within ± this, so that sums of infinities cannot make NaN."""

PE = "pe"
"""Key of the exam's PE in thresholds and temperatures."""

_NEG, _IND, _CHRONIC, _BOTH, _CENTRAL, _LEFT, _RIGHT, _GTE, _LT = range(len(EXAM_LABELS))
_SITES = (_CENTRAL, _LEFT, _RIGHT)


class Probabilities(NamedTuple):
    """Consistent probabilities of a batch of exams.

    Attributes
    ----------
    image_bz
        PE on each slice; 0 where masked.
    exam_bl
        The nine labels, in the order of `EXAM_LABELS`.
    pe_b
        PE in the exam; above 0.5 exactly where some slice is.
    pe_logit_b
        G, before any temperature.
    """

    image_bz: Tensor
    exam_bl: Tensor
    pe_b: Tensor
    pe_logit_b: Tensor


def conjunction(a: Tensor, b: Tensor) -> Tensor:
    """Conjunction of two probabilities that is above one half exactly where both are.

    See the module's head for its table; shapes broadcast.
    """
    product = a * b
    low = product * (1 + 4 * product)
    a_low = a * (b + 2 * a * (1 - b))
    b_low = b * (a + 2 * b * (1 - a))
    high = 0.5 + 2 * (a - 0.5) * (b - 0.5)
    return torch.where(a > 0.5, torch.where(b > 0.5, high, b_low), torch.where(b > 0.5, a_low, low))


def pe_logits(image_logits_bz: Tensor, exam_logits_bl: Tensor) -> Tensor:
    """Logits u_bz of PE on each slice, the exam's evidence included; their maximum is the exam's.

    Parameters
    ----------
    image_logits_bz, exam_logits_bl
        Raw outputs of the image head and the exam head.
    """
    s = image_logits_bz.clamp(-LOGIT_BOUND, LOGIT_BOUND)
    e = exam_logits_bl.clamp(-LOGIT_BOUND, LOGIT_BOUND)
    g = -torch.logaddexp(e[:, _NEG], e[:, _IND])
    return s + g[:, None]


def consistent_probabilities(
    image_logits_bz: Tensor,
    exam_logits_bl: Tensor,
    *,
    mask_bz: Tensor | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> Probabilities:
    """Turn any logits into probabilities that obey the label rules; differentiable.

    Parameters
    ----------
    image_logits_bz
        (b, z) raw logits of the image head, z >= 1.
    exam_logits_bl
        (b, 9) raw logits of the exam head, in the order of `EXAM_LABELS`.
    mask_bz
        True where a slice exists; None where all do. Each exam must have one slice at least.
    temperatures
        Label (or ``IMAGE_LABEL``, ``"pe"``) to positive temperature; absent ones are 1.

    Returns
    -------
    Probabilities
        In [0, 1]; NaN only where a logit was NaN.
    """
    t = temperatures or {}
    u = pe_logits(image_logits_bz, exam_logits_bl)
    if mask_bz is not None:
        u = u.masked_fill(~mask_bz, -4 * LOGIT_BOUND)
    big_g = u.amax(dim=1)
    is_pe = big_g > 0
    p_pe = torch.sigmoid(big_g / t.get(PE, 1.0))
    q_none = torch.sigmoid(-big_g / t.get(PE, 1.0))
    image = _on_its_side(torch.sigmoid(u / t.get(IMAGE_LABEL, 1.0)), u > 0)
    if mask_bz is not None:
        image = image.masked_fill(~mask_bz, 0.0)

    conditional, wins = _conditionals(exam_logits_bl.clamp(-LOGIT_BOUND, LOGIT_BOUND), t)
    state = torch.stack([q_none] * 2 + [p_pe] * 7, dim=1)
    in_state = torch.stack([~is_pe] * 2 + [is_pe] * 7, dim=1)
    exam = _on_its_side(conjunction(state, conditional), wins & in_state)
    return Probabilities(image, exam, _on_its_side(p_pe, is_pe), big_g)


def _conditionals(e: Tensor, t: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Probabilities (b, 9) of each label given the exam's state, and which are predicted then."""

    def scaled(index: int) -> Tensor:
        return e[:, index] / t.get(EXAM_LABELS[index], 1.0)

    columns: dict[int, Tensor] = {}
    wins: dict[int, Tensor] = {}
    for first, second in ((_IND, _NEG), (_GTE, _LT)):  # a tie goes to the first
        # one temperature for both, so that equal logits stay equal: that of the first label
        difference = (e[:, first] - e[:, second]) / t.get(EXAM_LABELS[first], 1.0)
        columns[first] = torch.sigmoid(difference)
        columns[second] = torch.sigmoid(-difference)
        wins[first] = e[:, first] >= e[:, second]
        wins[second] = ~wins[first]

    kinds = torch.stack([torch.zeros_like(e[:, 0]), scaled(_CHRONIC), scaled(_BOTH)], dim=1)
    shares = torch.softmax(kinds, dim=1)
    for position, index in ((1, _CHRONIC), (2, _BOTH)):
        columns[index] = shares[:, position]
    wins[_CHRONIC] = (columns[_CHRONIC] > 0.5) & (scaled(_CHRONIC) > scaled(_BOTH))
    wins[_BOTH] = (columns[_BOTH] > 0.5) & (scaled(_BOTH) > scaled(_CHRONIC))

    sites = torch.stack([scaled(index) for index in _SITES], dim=1)
    top = sites.amax(dim=1, keepdim=True)
    lifted = sites + functional.softplus(-top)
    first_top = functional.one_hot(sites.argmax(dim=1), len(_SITES)).bool()
    for position, index in enumerate(_SITES):
        columns[index] = torch.sigmoid(lifted[:, position])
        wins[index] = (lifted[:, position] > 0) | first_top[:, position]

    order = range(len(EXAM_LABELS))
    return (
        torch.stack([columns[index] for index in order], dim=1),
        torch.stack([wins[index] for index in order], dim=1),
    )


def _on_its_side(p: Tensor, above: Tensor) -> Tensor:
    """Hold probabilities on their side of one half; the gradient is that of `p` itself."""
    value = p.detach()
    held = torch.where(above, value.clamp(min=0.5 + MARGIN), value.clamp(max=0.5))
    if not p.requires_grad:
        return held
    return held + (p - value)  # the difference is exactly zero: only its gradient counts
