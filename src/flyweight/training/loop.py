"""One training loop, one function: `fit`. The loss is an argument; everything else is a setting.

AdamW (fused), linear warm-up then linear decay to 0, gradient clipping, length-bucketed batches, bf16 autocast where
the processor multiplies bf16 itself, best epoch by the validation split. Interrupted work resumes bit for bit.

Only embedding rows of tokens that occur are trained (others would see no gradient, only decay): the optimizer then
moves 11 M weights a step instead of 22 M for MiniLM.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.answers import Answer
from flyweight.artifact import whole_file
from flyweight.data.messages import Message, fingerprint
from flyweight.data.tags import spans_to_tags
from flyweight.errors import ConfigError, DataError
from flyweight.measure.machine import multiplies_bf16_natively
from flyweight.measure.quality import macro_f1, span_f1
from flyweight.model.linear import mask_of
from flyweight.model.nlu import NLUModel, pad
from flyweight.progress import bar
from flyweight.tokenizer import Encoded
from flyweight.training.losses import Batch, Loss, Score, labels_loss
from flyweight.training.occurring import occurring_rows
from flyweight.training.quantizers import Quantizer

CHECKPOINT = "training.pt"
BUCKET_BATCHES = 50  # batches whose messages are sorted by length together
SAVE_SECONDS = 300.0  # between two saves within an epoch
AUTO_STEPS = 3000  # steps aimed at when epochs is not given ...
AUTO_EPOCHS = (5, 40)  # ... within these bounds


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of one training.

    epochs: passes over the training split, >= 1; None aims at 3000 steps within 5 to 40 epochs
    learning_rate: peak, in (0, 1)             batch_size: messages a step, >= 1
    warmup: share of steps, in [0, 1)          weight_decay: AdamW's, >= 0; not on biases and norms
    dropout: in [0, 1)                         clip: largest gradient norm, > 0
    seed: of shuffling, dropout and new weights
    """

    epochs: int | None = None
    learning_rate: float = 1e-4
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    dropout: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs is None or _whole(self.epochs, 1), "none, or a whole number of at least 1"),
            "learning_rate": (_number(self.learning_rate) and 0 < self.learning_rate < 1, "above 0 and below 1"),
            "batch_size": (_whole(self.batch_size, 1), "a whole number of at least 1"),
            "warmup": (_number(self.warmup) and 0 <= self.warmup < 1, "from 0 to below 1"),
            "weight_decay": (_number(self.weight_decay) and self.weight_decay >= 0, "at least 0"),
            "dropout": (_number(self.dropout) and 0 <= self.dropout < 1, "from 0 to below 1"),
            "clip": (_number(self.clip) and self.clip > 0, "above 0"),
            "seed": (_whole(self.seed, 0) and self.seed < 2**63, "a whole number from 0 to below 2^63"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise ConfigError(f"training setting {name} is {getattr(self, name)!r}; allowed: {allowed}")


def _whole(value: object, low: int) -> bool:
    return type(value) is int and value >= low


def _number(value: object) -> bool:
    return type(value) in (int, float)


@dataclass(frozen=True)
class Example:
    """One tokenized training message: ids, intent index (-100 unknown), tag index of each word."""

    encoded: Encoded
    intent: int
    tags: np.ndarray


def fit(
    model: NLUModel,
    train: Sequence[Message],
    validation: Sequence[Message] = (),
    settings: TrainingSettings | None = None,
    *,
    loss: Loss = labels_loss,
    score: Score | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    progress: bool = True,
) -> NLUModel:
    """Train `model` in place and return it with the weights of its best validation epoch (the last without one).

    score: what makes an epoch the best, of the logits of the validation messages whose intents are known; None: the
    mean of intent macro-F1 and span F1. Packed matrices become float first. `folder` keeps `training.pt`: a run with
    the same settings and messages goes on from there after Ctrl-C and ends with the same bits. It stays until
    `forget(folder)`, for the caller to save the result first. Raises KeyboardInterrupt after saving; ConfigError if the
    folder holds another training's checkpoint.
    """
    settings = settings or TrainingSettings()
    if not train:
        raise DataError("no training messages", allowed="at least one labelled message is needed")
    run = _Run(model.unpack(), train, validation, settings, loss, score, pick_device(device), folder)
    with run.small_vocabulary(), _interruptible() as interrupted:
        run.resume()
        with bar("training", run.n_steps, run.step, progress) as advance:
            while run.step < run.n_steps:
                value = run.train_step()
                at_end = run.step % run.steps_per_epoch == 0
                if at_end:
                    run.end_epoch()
                if interrupted.is_set() or (at_end and run.step < run.n_steps) or run.save_is_due():
                    run.save()
                if interrupted.is_set():
                    raise KeyboardInterrupt
                advance(1, note=f"loss {value:.3f}{run.score_note()}")
        run.take_best()
        run.save()  # complete: whoever keeps the result calls `forget`, so that nothing is lost before
    model.to("cpu").eval()
    return model


def forget(folder: str | Path) -> None:
    """The result of a training is safe: its checkpoint is no longer needed."""
    (Path(folder) / CHECKPOINT).unlink(missing_ok=True)


def auto_epochs(
    n_messages: int, batch_size: int, n_steps: int = AUTO_STEPS, within: tuple[int, int] = AUTO_EPOCHS
) -> int:
    """Passes over n messages that come nearest to n_steps steps, at least and at most those of `within`."""
    steps_per_epoch = max(1, math.ceil(n_messages / batch_size))
    return min(max(round(n_steps / steps_per_epoch), within[0]), within[1])


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU. Errors: ConfigError for a device that this machine lacks."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there.get(device.split(":")[0]):
        raise ConfigError(
            f"device '{device}' is not here; allowed: auto, {', '.join(n for n, a in there.items() if a)}"
        )
    return torch.device(device)


def encode(model: NLUModel, messages: Sequence[Message]) -> list[Example]:
    """Tokenize messages and look their labels up. An intent that the model lacks is a DataError."""
    intents = {name: i for i, name in enumerate(model.labels.intents)}
    tags = {name: i for i, name in enumerate(model.labels.tags)}
    examples = []
    for message, encoded in zip(messages, model.tokenizer.encode_batch([m.text for m in messages]), strict=True):
        if message.intent is not None and message.intent not in intents:
            raise DataError(f"intent '{message.intent}'", allowed="the model was made for: " + ", ".join(intents))
        names = spans_to_tags(encoded.words, message.entities) if tags else []
        index = np.array([tags.get(name, 0) for name in names], np.int64)
        examples.append(Example(encoded, -100 if message.intent is None else intents[message.intent], index))
    return examples


def batches(examples: Sequence[Example], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Shuffled batches of messages of like length: sorted within runs of BUCKET_BATCHES batches, then shuffled."""
    order = rng.permutation(len(examples))
    found: list[list[int]] = []
    for start in range(0, len(order), size * BUCKET_BATCHES):
        run = sorted(order[start : start + size * BUCKET_BATCHES], key=lambda i: len(examples[i].encoded.ids))
        found += [[int(i) for i in run[at : at + size]] for at in range(0, len(run), size)]
    for i in rng.permutation(len(found)):
        yield found[i]


def collate(examples: Sequence[Example], rows: list[int]) -> Batch:
    """Pad one batch."""
    chosen = [examples[i] for i in rows]
    ids, mask = pad([e.encoded.ids for e in chosen])
    at = [b * ids.shape[1] + e.encoded.first[: len(e.tags)] for b, e in enumerate(chosen)]
    return Batch(
        ids,
        mask,
        torch.tensor([e.intent for e in chosen]),
        torch.from_numpy(np.concatenate(at)),
        torch.from_numpy(np.concatenate([e.tags for e in chosen])),
        torch.tensor(rows),
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (biases, norms) and what quantizers learn (steps, centres) do not."""
    decays: list[nn.Parameter] = []
    stays: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (decays if p.ndim > 1 and "_quantizer." not in name else stays).append(p)
    return [{"params": decays, "weight_decay": weight_decay}, {"params": stays, "weight_decay": 0.0}]


def rate(step: int, n_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear up over warmup * n_steps, then linear down to 0 at n_steps."""
    n_warmup = max(1, round(warmup * n_steps))
    return min((step + 1) / n_warmup, (n_steps - step) / max(1, n_steps - n_warmup))


class _Run:
    """The state of one `fit`: what a checkpoint keeps."""

    def __init__(
        self,
        model: NLUModel,
        train: Sequence[Message],
        validation: Sequence[Message],
        settings: TrainingSettings,
        loss: Loss,
        score: Score | None,
        device: torch.device,
        folder: str | Path | None,
    ):
        self.model, self.settings, self.loss, self.device = model.to(device), settings, loss, device
        self.score, self.score_name = score, "F1" if score is None else score.__name__
        self.examples = encode(model, train)
        self.validation = [m for m in validation if m.intent in model.labels.intents or m.intent is None]
        self.validation_encoded = [e.encoded for e in encode(model, self.validation)]
        self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)
        self.n_steps = (settings.epochs or auto_epochs(len(train), settings.batch_size)) * self.steps_per_epoch
        self.step = 0
        self.best: dict[str, Any] = {"score": (-math.inf, 0.0), "epoch": 0, "state": None}
        self.file = Path(folder) / CHECKPOINT if folder else None
        self.identity = self._identity(train, validation) if folder else ""
        self.saved_at = time.monotonic()
        self.order: list[list[int]] = []
        self.bf16 = device.type == "cuda" or (device.type == "cpu" and multiplies_bf16_natively())
        model.dropout = model.encoder.dropout = settings.dropout
        torch.manual_seed(settings.seed)

    def _identity(self, train: Sequence[Message], validation: Sequence[Message]) -> str:
        """SHA-256 over all that decides the result: settings, loss, messages in order, model, tokenizer, weights."""
        texts = [[m.text for m in messages] for messages in (train, validation)]
        messages = [fingerprint(train), fingerprint(validation), texts]
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        made_of = [asdict(self.settings), loss, self.score_name, self.model.describe(), self.model.tokenizer.sha256]
        made_of += [repr(m) for m in self.model.modules() if isinstance(m, Quantizer)]
        found = hashlib.sha256(json.dumps([messages, made_of], sort_keys=True).encode())
        for p in self.model.parameters():
            found.update(p.detach().cpu().numpy().tobytes())
        for _, module, _ in self.model.matrices():
            if (mask := mask_of(module)) is not None:
                found.update(mask.tobytes())
        return found.hexdigest()

    @contextmanager
    def small_vocabulary(self) -> Iterator[None]:
        """Within, the model knows only the token ids and bigrams that occur; afterwards all rows are back in place."""
        encoded = [e.encoded for e in self.examples] + self.validation_encoded
        with occurring_rows(self.model.encoder, encoded) as number:
            self.examples = [replace(e, encoded=replace(e.encoded, ids=number[e.encoded.ids])) for e in self.examples]
            self.validation_encoded = [replace(e, ids=number[e.ids]) for e in self.validation_encoded]
            groups = parameter_groups(self.model, self.settings.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=self.device.type != "mps")
            yield

    def train_step(self) -> float:
        """One batch: forward, backward, clip, update. Returns the loss."""
        self.model.train()
        epoch, at = divmod(self.step, self.steps_per_epoch)
        if not self.order or at == 0:
            rng = np.random.default_rng([self.settings.seed, epoch])
            self.order = list(batches(self.examples, self.settings.batch_size, rng))
        batch = collate(self.examples, self.order[at])
        batch = Batch(*(getattr(batch, name).to(self.device) for name in Batch.__dataclass_fields__))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate(self.step, self.n_steps, self.settings.warmup)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def end_epoch(self) -> None:
        """Validate; keep the weights if this epoch is the best so far (a later epoch wins a tie).

        Epochs in which a quantizer is not what will be packed yet are none to choose from.
        """
        if not self.validation or not all(m.settled for m in self.model.modules() if isinstance(m, Quantizer)):
            return
        score = self.validate()
        if score >= tuple(self.best["score"]):
            state = {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}
            self.best = {"score": score, "epoch": self.step // self.steps_per_epoch, "state": state}

    def validate(self) -> tuple[float, float]:
        """(mean of intent macro-F1 and span F1, minus mean negative log likelihood) on the validation split.

        Where a score was given: (that, 0).
        """
        labels, logits = self.model.labels, self.model.logits(self.validation_encoded)
        if self.score is not None:
            return self.score(logits), 0.0
        answers: list[Answer] = []
        for m, encoded, (intent, tags) in zip(self.validation, self.validation_encoded, logits, strict=True):
            answers.append(labels.answer(m.text, encoded, intent, tags))
        known = [(m.intent, a) for m, a in zip(self.validation, answers, strict=True) if m.intent is not None]
        scores = [macro_f1([g for g, _ in known], [a.intent for _, a in known])] if known else []
        if labels.entity_labels:
            scores.append(span_f1([m.entities for m in self.validation], [a.entities for a in answers]))
        right = [a.probabilities[labels.intents.index(g)] for g, a in known]
        likelihood = float(np.mean(np.log(np.maximum(right, 1e-12)))) if right else 0.0
        return float(np.mean(scores)) if scores else 0.0, likelihood

    def score_note(self) -> str:
        """Best validation score so far, for the progress line."""
        if not self.best["state"]:
            return ""
        return f", best {self.score_name} {self.best['score'][0]:.3f} (epoch {self.best['epoch']})"

    def take_best(self) -> None:
        """Load the best epoch's weights and record how the model was trained."""
        if self.best["state"]:
            self.model.load_state_dict(self.best["state"])
        self.model.card.steps.append(
            {
                "training": asdict(self.settings),
                "steps": self.n_steps,
                "messages": len(self.examples),
                "best_epoch": self.best["epoch"] or self.n_steps // self.steps_per_epoch,
                f"validation_{self.score_name.lower()}": round(self.best["score"][0], 5)
                if self.best["state"]
                else None,
                "bf16": self.bf16,
            }
        )

    def save_is_due(self) -> bool:
        """True every SAVE_SECONDS."""
        return self.file is not None and time.monotonic() - self.saved_at > SAVE_SECONDS

    def save(self) -> None:
        """Write training.pt, whole or not at all."""
        if self.file is None:
            return
        state = {
            "identity": self.identity,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": {**self.best, "score": list(self.best["score"])},
            "rng": _rng_states(self.device),
        }
        with whole_file(self.file) as file:
            torch.save(state, file)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from training.pt where it belongs to this very training."""
        if self.file is None or not self.file.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(self.file, map_location=self.device, weights_only=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:80]
            raise ConfigError(f"{self.file} cannot be read ({reason}); delete it to train anew") from error
        if state.get("identity") != self.identity:
            raise ConfigError(
                f"{self.file} belongs to a training with other settings or messages; "
                "choose another folder, or delete it to train anew"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self.best["score"] = tuple(self.best["score"])
        _set_rng_states(self.device, [s.cpu() for s in state["rng"]])
        if self.step % self.steps_per_epoch:
            rng = np.random.default_rng([self.settings.seed, self.step // self.steps_per_epoch])
            self.order = list(batches(self.examples, self.settings.batch_size, rng))


def _rng_states(device: torch.device) -> list[Tensor]:
    """The CPU's random state and, elsewhere, the device's: dropout draws from it."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _set_rng_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step is finished and saved before the work stops; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
