"""How far a student is from its teacher: one table of losses, each a function of what the two make of a batch.

    answers   logits, mse, tags                                                 any teacher
    inside    hidden, hints, embeddings, attention, relations, neurons          a teacher that is a model

Every loss is a mean over messages, words or tokens, 0 where the two agree (tags: where the student is certain). Those
on hidden numbers are errors relative to the teacher's mean square, those on probabilities are in nats: both are about 1
where nothing is learnt yet, so that they can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]  # the student's, the teacher's
UNLIKELY = 25.0  # logits further below the largest one say "never", e^-25 = 1e-11: how far below means nothing


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What student and teacher make of a batch of B messages of T tokens, N of whose words the teacher saw.

    intents (B, C) logits; tags (N, n_tags) logits, None where one has no entities; path (N,) int64 the teacher's legal
    tags; mask (B, T) bool, True for real tokens;
    states: by loss, hidden numbers of tokens (tokens, D) or, for neurons, of messages (B, K), the student's projected;
    scores: by loss, what a softmax over the last axis is taken of (B, heads, T, T), -inf at keys that are padding.
    """

    intents: Pair
    tags: Pair | None
    path: Tensor | None
    mask: Tensor
    temperature: float
    states: Mapping[str, Sequence[Pair]] = field(default_factory=dict)
    scores: Mapping[str, Sequence[Pair]] = field(default_factory=dict)


def logits(c: Compared) -> Tensor:
    """T^2 [ mean_b KL(p_T || q_T) of intents + mean_w KL(p_T || q_T) of tags ], p_T = softmax(teacher's / T), q_T ours.

    T^2 is applied here: gradients keep their size whatever T. Hinton et al. 2015, arXiv:1503.02531.
    """
    return sum_of(divergence(ours, theirs, c.temperature) for ours, theirs in _answers(c))


def mse(c: Compared) -> Tensor:
    """mean_bc (z_bc - t_bc)^2 of intent logits, and of tag logits, each row less its mean; no temperature.

    softmax does not know a row's mean, so it is not learnt; classes more than 25 below the teacher's largest are left
    out. Tang et al. 2019, arXiv:1903.12136.
    """
    return sum_of(squared_logits(ours, theirs) for ours, theirs in _answers(c))


def tags(c: Compared) -> Tensor:
    """mean_w CE(tag_w), tag_w on the teacher's best legal path: its decoded answer is the label, sure or not.

    Kim & Rush 2016, arXiv:1606.07947. Without entities 0.
    """
    if c.tags is None or c.path is None or not len(c.path):
        return c.intents[0].sum() * 0.0
    return F.cross_entropy(c.tags[0].float(), c.path)


def hidden(c: Compared) -> Tensor:
    """sum over the student's layers l of |h_l P_l - t_m(l)|^2 / |t_m(l)|^2, all real tokens of the batch together.

    m(l): of N teacher's and n student's layers, behind layer l = 1, ..., n that behind round(l N / n); P_l is learnt
    along, and left out where both are equally wide. TinyBERT, Jiao et al. 2019, arXiv:1909.10351.
    """
    return sum_of(relative_error(ours, theirs) for ours, theirs in c.states["hidden"])


def hints(c: Compared) -> Tensor:
    """As hidden, of one pair: the states in the middle of both. A stage of its own, before the others.

    FitNets, Romero et al. 2014, arXiv:1412.6550.
    """
    return sum_of(relative_error(ours, theirs) for ours, theirs in c.states["hints"])


def embeddings(c: Compared) -> Tensor:
    """As hidden, of what the first layers see. TinyBERT, arXiv:1909.10351."""
    return sum_of(relative_error(ours, theirs) for ours, theirs in c.states["embeddings"])


def neurons(c: Compared) -> Tensor:
    """As hidden, of the pooled vector's K most informative numbers, one vector a message.

    They are those whose variance lies most between the intents that the teacher answers (see `informative`).
    Luo et al. 2016, Face Model Compression by Distilling Knowledge from Neurons, AAAI.
    """
    return sum_of(relative_error(ours, theirs) for ours, theirs in c.states["neurons"])


def attention(c: Compared) -> Tensor:
    """sum over the student's layers of the mean KL(a_t || a_s) of a token's attention, mapped as in hidden.

    Where both have as many heads, head by head; else of their mean over the heads. Relative position bias is part of
    it. TinyBERT, arXiv:1909.10351 (theirs: squares of scores).
    """
    found = []
    for ours, theirs in c.scores["attention"]:
        rows = [torch.softmax(s.float(), dim=-1) for s in (ours, theirs)]
        if ours.shape[1] != theirs.shape[1]:
            rows = [r.mean(dim=1, keepdim=True) for r in rows]
        a, b = (r.clamp_min(1e-12).log() for r in rows)
        found.append(divergence_of_rows(a, b, c.mask))
    return sum_of(found)


def relations(c: Compared) -> Tensor:
    """sum over Q, K, V of the last layers of the mean KL(R_t || R_s), R = softmax(X_r X_r^T / sqrt d_r) of token pairs.

    X_r (T, d_r): Q, K or V of all heads side by side, cut into as many relation heads for both: whatever heads, widths
    and depths they have. MiniLMv2, Wang et al. 2020, arXiv:2012.15828.
    """
    found = []
    for ours, theirs in c.scores["relations"]:
        a, b = (F.log_softmax(s.float(), dim=-1) for s in (ours, theirs))
        found.append(divergence_of_rows(a, b, c.mask))
    return sum_of(found)


LOSSES: dict[str, Callable[[Compared], Tensor]] = {
    "logits": logits,
    "mse": mse,
    "tags": tags,
    "hidden": hidden,
    "hints": hints,
    "embeddings": embeddings,
    "attention": attention,
    "relations": relations,
    "neurons": neurons,
}
ANSWERS = ("logits", "mse", "tags")  # what any teacher gives


def divergence(ours: Tensor, theirs: Tensor, T: float = 1.0) -> Tensor:
    """T^2 mean_b KL(softmax(theirs_b / T) || softmax(ours_b / T)); both (B, C)."""
    p, q = F.log_softmax(theirs / T, dim=-1), F.log_softmax(ours.float() / T, dim=-1)
    return T * T * F.kl_div(q, p, reduction="batchmean", log_target=True)


def squared_logits(ours: Tensor, theirs: Tensor) -> Tensor:
    """mean (z - t)^2 of rows (B, C) less their means, over the classes within 25 of the teacher's largest."""
    if not ours.shape[1]:  # a model without intents
        return ours.sum()
    likely = theirs > theirs.amax(dim=1, keepdim=True) - UNLIKELY
    there = likely.float()
    z, t = (_centred(torch.where(likely, x.float(), 0.0), there) for x in (ours, theirs))
    return ((z - t) * there).square().sum() / there.sum()


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """sum (h - t)^2 / sum t^2; both of one shape."""
    t = theirs.float()
    return (ours.float() - t).square().sum() / t.square().sum()


def divergence_of_rows(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """mean KL(p || q) over heads and real tokens; log-probabilities (B, heads, T, T) of keys, mask (B, T) of tokens.

    Keys that are padding have probability 0, whatever their logarithm says.
    """
    keys = mask[:, None, None, :]
    terms = theirs.exp() * (theirs.masked_fill(~keys, 0.0) - ours.masked_fill(~keys, 0.0))
    rows = terms.masked_fill(~keys, 0.0).sum(dim=-1)  # (B, heads, T)
    real = mask[:, None, :].expand_as(rows)
    return rows[real].mean()


def relation_scores(x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """x (B, T, A) cut into relation heads -> X_r X_r^T / sqrt d_r, (B, heads, T, T), -inf at padding."""
    B, T, A = x.shape
    r = x.view(B, T, heads, A // heads).transpose(1, 2)  # (B, heads, T, d_r)
    scores = (r @ r.transpose(-1, -2)).float() * (A // heads) ** -0.5
    return scores.masked_fill(~mask[:, None, None, :], -torch.inf)


def informative(pooled: Tensor, answers: Tensor, count: int) -> Tensor:
    """Indices of the `count` numbers with the largest share of variance between answers, ascending.

        share_j = sum_c n_c (mean_c x_j - mean x_j)^2 / sum_i (x_ij - mean x_j)^2

    pooled (N, D); answers (N,) the intent that each message is answered with. A number that never changes has share 0.
    """
    x = pooled.double() - pooled.double().mean(dim=0)
    one_hot = F.one_hot(answers).double()  # (N, C)
    counts = one_hot.sum(dim=0).clamp_min(1.0)
    between = ((one_hot.t() @ x).square() / counts[:, None]).sum(dim=0)
    share = between / x.square().sum(dim=0).clamp_min(1e-30)
    return share.argsort(descending=True, stable=True)[:count].sort().values


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one loss or more."""
    return torch.stack(list(terms)).sum()


def _answers(c: Compared) -> list[Pair]:
    """Logits of intents, and of tags where there are words to compare."""
    return [c.intents] if c.tags is None or not len(c.tags[0]) else [c.intents, c.tags]


def _centred(x: Tensor, there: Tensor) -> Tensor:
    """Each row less the mean of what counts of it."""
    return x - (x * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)
