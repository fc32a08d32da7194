"""Learning from a teacher's answers and from what it computes on the way: `fit` with any losses of distances.py.

    loss = (1 - s) labels_loss + s sum_answers + sum_inside        s: the share of the teacher's answers, `soft`

What the teacher computes is asked for before the first step and kept as float16 up to ROOM bytes, a vector a token;
what has no room is asked for batch by batch: whoever goes on after an interruption sees the same bits. Q, K and V of a
layer are made again of what the layer saw. Projections are the student's while it is trained, so that `fit` trains,
saves and resumes them; then they are thrown away.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flyweight.data.messages import Message
from flyweight.data.tags import legal_tags
from flyweight.errors import ConfigError
from flyweight.model.encoder import Attention, Encoder, Layer
from flyweight.model.nlu import EVAL_BATCH, NLUModel, pad
from flyweight.model.students import least_squares
from flyweight.positions import relative_buckets
from flyweight.progress import bar
from flyweight.training.distances import ANSWERS, LOSSES, Compared, Pair, informative, relation_scores, sum_of
from flyweight.training.hidden import ROOM, cut_differently
from flyweight.training.logits import SoftLabels, Teacher
from flyweight.training.loop import pick_device
from flyweight.training.losses import Batch, heads_loss

RELATION_HEADS = 16  # at most: the largest number that divides both widths
N_FITTED = 256  # messages that projections begin with the least squares of, and twice as many choose neurons
PROJECTIONS = "projections"  # a student's module of them, while it is trained


@dataclass(frozen=True)
class Links:
    """Which numbers of the student are compared with which of the teacher's.

    states: loss -> (student's, teacher's) number of a state, 0 the embeddings, l behind layer l;
    layers: loss -> (student's, teacher's) index of a layer, whose Q, K and V are compared.
    """

    states: dict[str, list[tuple[int, int]]]
    layers: dict[str, list[tuple[int, int]]]

    @classmethod
    def of(cls, names: Sequence[str], n_ours: int, n_theirs: int) -> Links:
        """Of a student with n_ours layers and a teacher with n_theirs."""
        behind = [(i, max(1, round(i * n_theirs / n_ours)) if n_theirs else 0) for i in range(1, n_ours + 1)]
        states = {
            "hidden": behind or [(0, n_theirs)],
            "hints": [(math.ceil(n_ours / 2), max(min(1, n_theirs), round(n_theirs / 2)))],
            "embeddings": [(0, 0)],
        }
        layers = {
            "attention": [(i - 1, j - 1) for i, j in behind] or [(n_ours - 1, n_theirs - 1)],  # which is refused
            "relations": [(n_ours - 1, n_theirs - 1)],
        }
        return cls({n: states[n] for n in names if n in states}, {n: layers[n] for n in names if n in layers})


def distilled_loss(
    names: Sequence[str],
    teacher: Teacher,
    student: NLUModel,
    messages: Sequence[Message],
    answers: SoftLabels,
    *,
    device: str = "auto",
    progress: bool = True,
) -> DistilledLoss:
    """The loss of a training with losses of these names; `messages`: those that `fit` will be given, in order.

    answers: the teacher's of the same messages, see soft_labels_loss; its temperature and soft are used here. Gives the
    student the projections that it needs (in place): `without_projections` takes them away.
    Errors: ConfigError where teacher and student cannot be compared so.
    """
    inside = [name for name in names if name not in ANSWERS]
    if not inside:
        return DistilledLoss(names, answers, student, None)
    if not isinstance(teacher, NLUModel):
        raise ConfigError(
            f"the losses {'+'.join(inside)} compare what a model computes, and this teacher gives answers only; "
            f"name one model folder as the teacher, or learn {', '.join(ANSWERS)}"
        )
    links = Links.of(inside, len(student.encoder.layers), len(teacher.encoder.layers))
    if (links.states or links.layers) and (found := cut_differently(teacher, student, messages)):
        raise ConfigError(f"{found}: the losses {'+'.join(inside)} compare tokens; learn answers and neurons only")
    for pairs in links.layers.values():
        for model, what, side in ((student, "the model", 0), (teacher, "the teacher", 1)):
            _refuse_without_heads(model, what, [pair[side] for pair in pairs], "+".join(links.layers))
    if "neurons" in inside and not teacher.labels.intents:
        raise ConfigError("the loss neurons chooses them by the teacher's intents, and it has none; leave neurons out")
    watched = Watched(teacher, messages, links, "neurons" in inside)
    loss = DistilledLoss(names, answers, student, watched)
    loss.give_projections(student, messages)
    watched.keep(pick_device(device), progress)
    return loss


def without_projections(model: NLUModel) -> NLUModel:
    """The student without what it was compared through (in place)."""
    if hasattr(model, PROJECTIONS):
        delattr(model, PROJECTIONS)
    return model


class DistilledLoss:
    """See distilled_loss."""

    def __init__(self, names: Sequence[str], answers: SoftLabels, student: NLUModel, watched: Watched | None):
        self.names, self.answers, self.watched = tuple(names), answers, watched
        self.paths = _legal_paths(answers.tags, student.labels.tags) if "tags" in names and answers.tags else None
        # `fit` knows a training that was interrupted by the name of its loss.
        self.__name__ = f"distilled {'+'.join(names)} {answers.__name__} {'' if watched is None else watched.digest}"

    def __call__(self, model: NLUModel, batch: Batch) -> Tensor:
        """The loss of a batch."""
        states = model.encoder.hidden_states(batch.ids, batch.mask)
        logits = model.intent_logits(states[-1], batch.mask)
        compared = self.compared(model, batch, states, logits)
        soft, found = self.answers.soft, {name: LOSSES[name](compared) for name in self.names}
        loss = sum_of([logits.sum() * 0.0, *(v * (soft if n in ANSWERS else 1.0) for n, v in found.items())])
        if soft == 1.0:
            return loss
        labelled = self.answers.labelled[batch.rows.cpu()].to(logits.device)
        hard = labelled[batch.tag_at // batch.ids.shape[1]]  # (N,): plain text has no tags, not even O
        known = replace(batch, tag_at=batch.tag_at[hard], tags=batch.tags[hard])
        return loss + (1 - soft) * heads_loss(model, known, logits, states[-1])

    def compared(self, model: NLUModel, batch: Batch, states: Sequence[Tensor], logits: Tensor) -> Compared:
        """What the losses are functions of."""
        rows, device = batch.rows.tolist(), batch.ids.device
        tags: Pair | None = None
        path: Tensor | None = None
        if self.answers.tags is not None and model.tag_head is not None and len(batch.tags):
            wanted = torch.cat([self.answers.tags[i] for i in rows]).to(device)  # (N, n_tags)
            seen = ~wanted.isnan().any(dim=1)
            words = states[-1].flatten(0, 1)[batch.tag_at]
            tags = model.tag_head(F.dropout(words, model.dropout, model.training))[seen], wanted[seen]
            path = None if self.paths is None else torch.cat([self.paths[i] for i in rows]).to(device)[seen]
        compared = Compared(
            intents=(logits, self.answers.intents[batch.rows.cpu()].to(device)),
            tags=tags,
            path=path,
            mask=batch.mask,
            temperature=self.answers.temperature,
        )
        if self.watched is None:
            return compared
        said = self.watched.said(rows, device)
        return replace(
            compared,
            states=self.watched.states(model, batch.mask, states, said),
            scores=self.watched.scores(model, batch.mask, states, said),
        )

    @torch.no_grad()
    def give_projections(self, student: NLUModel, messages: Sequence[Message]) -> None:
        """The matrices that student's numbers are compared through, at first least squares on messages (in place)."""
        assert self.watched is not None
        student.eval()
        rows = list(range(min(len(messages), N_FITTED)))
        ids, mask = pad([e.ids for e in student.tokenizer.encode_batch([messages[i].text for i in rows])])
        student.to("cpu")
        states = student.encoder.hidden_states(ids, mask)
        said = self.watched.asked(rows, ids.device)
        pairs_by_loss = self.watched.states(student, mask, states, [said[i] for i in rows])
        projections = nn.ModuleDict()
        for name, pairs in pairs_by_loss.items():
            for at, (ours, theirs) in enumerate(pairs):
                if name == "neurons" or self.watched.needs_projection(student):
                    projections[f"{name}_{at}"] = least_squares(ours.float(), theirs)
        setattr(student, PROJECTIONS, projections)


class _Said(NamedTuple):
    """What a teacher computes of a message: tokens (T, numbers) float16 of all that is wanted; pooled (D,) float32."""

    tokens: Tensor
    pooled: Tensor


class Watched:
    """A teacher whose hidden numbers are compared. neurons: whether its pooled vector is."""

    def __init__(self, teacher: NLUModel, messages: Sequence[Message], links: Links, neurons: bool):
        self.teacher, self.links = teacher.copy().unpack().eval(), links
        self.ids = [e.ids for e in self.teacher.tokenizer.encode_batch([m.text for m in messages])]
        self.wanted = sorted({theirs for pairs in links.states.values() for _, theirs in pairs})
        self.layers = sorted({theirs for pairs in links.layers.values() for _, theirs in pairs})
        self.kept: dict[int, _Said] = {}
        self.informative = self._informative() if neurons else None
        found = hashlib.sha256(repr(links).encode())
        for p in self.teacher.parameters():
            found.update(p.detach().cpu().numpy().tobytes())
        self.digest = found.hexdigest()

    def keep(self, device: torch.device, progress: bool) -> None:
        """Ask about the first messages, as many as there is room for."""
        width = self.teacher.encoder.config.hidden
        numbers = len(self.wanted) * width
        numbers += sum(_heads_of(self.teacher.encoder, i).qkv.weight.shape[0] for i in self.layers)
        sizes = np.cumsum([2 * numbers * len(ids) + 4 * width for ids in self.ids])
        rows = range(int(np.searchsorted(sizes, ROOM, side="right")))
        with bar("asking what the teacher computes", len(rows), show=progress) as advance:
            self.kept = self.asked(rows, device, advance)

    def said(self, rows: Sequence[int], device: torch.device) -> list[_Said]:
        """What the teacher computes of these messages."""
        new = self._ask([i for i in rows if i not in self.kept], device)
        return [self.kept[i] if i in self.kept else new[i] for i in rows]

    def asked(
        self, rows: Sequence[int], device: torch.device, advance: Callable[[int], None] = lambda _: None
    ) -> dict[int, _Said]:
        """As `said`, asked in batches of messages of like length."""
        found: dict[int, _Said] = {}
        order = sorted(rows, key=lambda i: len(self.ids[i]))
        for at in range(0, len(order), EVAL_BATCH):
            found |= self._ask(order[at : at + EVAL_BATCH], device)
            advance(len(order[at : at + EVAL_BATCH]))
        return found

    def states(
        self, model: NLUModel, mask: Tensor, states: Sequence[Tensor], said: Sequence[_Said]
    ) -> dict[str, list[Pair]]:
        """By loss: the student's hidden numbers, projected where it has projections, and the teacher's."""
        found: dict[str, list[Pair]] = {}
        if self.links.states:
            width = self.teacher.encoder.config.hidden
            theirs = _padded(said, mask.device)[..., : len(self.wanted) * width].split(width, dim=-1)
            for name, pairs in self.links.states.items():
                found[name] = [(states[i][mask], theirs[self.wanted.index(j)][mask]) for i, j in pairs]
        if self.informative is not None:
            pooled = torch.stack([s.pooled for s in said]).to(mask.device)[:, self.informative.to(mask.device)]
            found["neurons"] = [(model.pool(states[-1], mask), pooled)]
        projections = getattr(model, PROJECTIONS, {})
        return {
            name: [
                (projections[key](ours) if (key := f"{name}_{at}") in projections else ours, theirs)
                for at, (ours, theirs) in enumerate(pairs)
            ]
            for name, pairs in found.items()
        }

    def scores(
        self, model: NLUModel, mask: Tensor, states: Sequence[Tensor], said: Sequence[_Said]
    ) -> dict[str, list[Pair]]:
        """By loss: what a softmax is taken of, the student's and the teacher's."""
        if not self.links.layers:
            return {}
        start, theirs = len(self.wanted) * self.teacher.encoder.config.hidden, _padded(said, mask.device)
        of_layer: dict[int, Tensor] = {}
        for layer in self.layers:
            width = _heads_of(self.teacher.encoder, layer).qkv.weight.shape[0]
            of_layer[layer] = theirs[..., start : start + width]
            start += width
        found: dict[str, list[Pair]] = {}
        for name, pairs in self.links.layers.items():
            made = found.setdefault(name, [])
            for i, j in pairs:
                ours = _heads_of(model.encoder, i).qkv(states[i])  # (B, T, 3 H d)
                if name == "attention":
                    wanted = _attention_scores(self.teacher.encoder.to(mask.device), j, of_layer[j], mask)
                    made.append((_attention_scores(model.encoder, i, ours, mask), wanted))
                else:
                    heads = relation_heads(ours.shape[-1] // 3, of_layer[j].shape[-1] // 3)
                    both_chunks = zip(ours.chunk(3, dim=-1), of_layer[j].chunk(3, dim=-1), strict=True)
                    made += [(relation_scores(x, mask, heads), relation_scores(y, mask, heads)) for x, y in both_chunks]
        return found

    def needs_projection(self, student: NLUModel) -> bool:
        """Whether hidden numbers mean other things in both: other widths, or other layers than transformer layers."""
        same = student.encoder.config.hidden == self.teacher.encoder.config.hidden
        layers = (*student.encoder.layers, *self.teacher.encoder.layers)
        return not same or not student.encoder.layers or not all(isinstance(layer, Layer) for layer in layers)

    @torch.no_grad()
    def _ask(self, rows: Sequence[int], device: torch.device) -> dict[int, _Said]:
        """What the teacher computes of a batch. It reads its own ids, since `fit` renumbers the student's."""
        if not rows:
            return {}
        self.teacher.to(device)
        ids, mask = (a.to(device) for a in pad([self.ids[i] for i in rows]))
        states = self.teacher.encoder.hidden_states(ids, mask)
        parts = [states[i] for i in self.wanted]
        parts += [_heads_of(self.teacher.encoder, i).qkv(states[i]) for i in self.layers]
        tokens = torch.cat(parts or [states[-1][..., :0]], dim=-1).to("cpu", torch.float16)
        pooled = self.teacher.pool(states[-1], mask).float().cpu()
        return {i: _Said(tokens[at, : len(self.ids[i])].clone(), pooled[at].clone()) for at, i in enumerate(rows)}

    @torch.no_grad()
    def _informative(self) -> Tensor:
        """The half of the pooled numbers that tells most about the teacher's answers."""
        said = self.asked(range(min(len(self.ids), 2 * N_FITTED)), torch.device("cpu"))
        pooled = torch.stack([said[i].pooled for i in sorted(said)])
        answers = self.teacher.intent_head(pooled).argmax(dim=1)
        return informative(pooled, answers, max(1, pooled.shape[1] // 2))


def relation_heads(ours: int, theirs: int) -> int:
    """The largest number up to RELATION_HEADS that divides both widths."""
    return max(n for n in range(1, RELATION_HEADS + 1) if ours % n == 0 and theirs % n == 0)


def _heads_of(encoder: Encoder, i: int) -> Attention:
    """The attention of layer i, known to have one."""
    layer = encoder.layers[i]
    assert isinstance(layer, Layer)
    return layer.attention


def _attention_scores(encoder: Encoder, i: int, qkv: Tensor, mask: Tensor) -> Tensor:
    """q k^T / sqrt d + relative bias of layer i, (B, H, T, T), -inf at padding; qkv (B, T, 3 H d)."""
    attention, (B, T, _) = _heads_of(encoder, i), qkv.shape
    q, k, _ = qkv.view(B, T, 3, attention.heads, attention.head_size).permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
    scores = (q @ k.transpose(-1, -2)).float() * attention.head_size**-0.5
    if attention.relative_bias is not None:
        table = relative_buckets(T, encoder.config.relative_buckets, encoder.config.relative_max_distance)
        buckets = torch.from_numpy(table).to(qkv.device)
        scores = scores + F.embedding(buckets, attention.relative_bias).permute(2, 0, 1)
    return scores.masked_fill(~mask[:, None, None, :], -torch.inf)


def _refuse_without_heads(model: NLUModel, what: str, layers: Sequence[int], losses: str) -> None:
    """ConfigError where a layer whose heads are compared has none."""
    for i in layers:
        layer = model.encoder.layers[i] if 0 <= i < len(model.encoder.layers) else None
        if not isinstance(layer, Layer) or not layer.attention.heads:
            where = "no layers" if layer is None else f"no attention heads in layer {i}"
            raise ConfigError(f"{what} has {where}, and the losses {losses} compare attention heads; leave them out")


def _legal_paths(messages: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """The best legal tags of the words that the teacher saw, -100 for others; each (W, n_tags) -> (W,)."""
    paths = []
    for rows in messages:
        seen = ~rows.isnan().any(dim=1)
        path = torch.full((len(rows),), -100)
        path[seen] = torch.from_numpy(legal_tags(rows[seen].double().numpy(), names))
        paths.append(path)
    return paths


def _padded(said: Sequence[_Said], device: torch.device) -> Tensor:
    """(T_i, numbers) each -> (B, T, numbers) float32, zeros behind the ends."""
    return pad_sequence([s.tokens for s in said], batch_first=True).to(device).float()
