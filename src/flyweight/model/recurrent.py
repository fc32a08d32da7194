"""The bidirectional LSTM layer: u = D/2 units a direction, then residual and LayerNorm.

    z_t = input_t + R h_{t-1}                                gates i, f, g, o, u rows each; h_{-1} = c_{-1} = 0
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
    h_t = sigmoid(o) tanh(c_t)
    x_t = norm(x_t + [h_t forward ; h_t backward])

`input` (8u, D) with bias makes the gates of both directions in one product, forward ones first; R (4u, u) of each
direction has no bias. The backward direction reads the tokens of a message from its last to its first; padding is
never read. Sources: Hochreiter & Schmidhuber 1997; forget gates, Gers et al. 2000; both directions, Graves &
Schmidhuber 2005.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from flyweight.artifact import RECURRENT_STEP
from flyweight.model.linear import STEPS, Linear, Recurrent


class LSTMLayer(nn.Module):
    """See the module. `ahead` and `back` are R of the two directions."""

    def __init__(self, hidden: int, eps: float):
        super().__init__()
        u = hidden // 2
        self.input, self.ahead, self.back = Linear(hidden, 8 * u), Recurrent(u), Recurrent(u)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        nn.init.normal_(self.input.weight, std=hidden**-0.5)
        for recurrent in (self.ahead, self.back):
            for gate in recurrent.weight.data.split(u):
                nn.init.orthogonal_(gate)
        assert self.input.bias is not None
        with torch.no_grad():
            self.input.bias.view(2, 4, u)[:, 1] = 1.0  # remember first: Jozefowicz et al. 2015

    def matrices(self) -> Iterator[tuple[str, Linear]]:
        """(name within the layer, module), in the order in which they multiply."""
        yield "lstm.input", self.input
        yield "lstm.forward", self.ahead
        yield "lstm.backward", self.back

    def norms(self) -> Iterator[tuple[str, nn.LayerNorm]]:
        """(name within the layer, module)."""
        yield "lstm.norm", self.norm

    def forward(self, x: Tensor, mask: Tensor, buckets: Tensor | None, dropout: float) -> Tensor:
        """x (B, T, D), mask (B, 1, 1, T) additive float: 0 for real tokens; buckets are not looked at -> (B, T, D)."""
        lengths = (mask[:, 0, 0] == 0).sum(dim=1)
        if self._only_floats():
            y = self._by_torch(x, lengths)
        else:
            order = _reversed(lengths, x.shape[1])
            weights = torch.stack([self.ahead.simulated(), self.back.simulated()])  # (2, 4u, u)
            y = _BothDirections.apply(self.input(x), weights, order, (self.ahead.rounds, self.back.rounds))
            self._show(y, order)
        return self.norm(x + F.dropout(y, dropout, self.training))

    def _only_floats(self) -> bool:
        """Whether torch's own LSTM will do: h is not rounded, and nobody watches the matrices."""
        matrices = [module for _, module in self.matrices()]
        watched = any(m._forward_pre_hooks or m._forward_hooks for m in matrices)
        return self.training and not (watched or self.ahead.rounds or self.back.rounds)

    def _by_torch(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, T, D) -> h (B, T, 2u), by torch's LSTM: a step in 4.4 ms, not 6.6 (D 128, 32 messages of 15)."""
        B, T, u = x.shape[0], x.shape[1], self.ahead.weight.shape[1]
        assert self.input.bias is not None
        with torch.autocast(x.device.type, enabled=False):
            inputs, biases = self.input.simulated().split(4 * u), self.input.bias.split(4 * u)
            none, start = x.new_zeros(4 * u, dtype=torch.float32), x.new_zeros(2, B, u, dtype=torch.float32)
            weights: list[Tensor] = []
            for of_input, bias, recurrent in zip(inputs, biases, (self.ahead, self.back), strict=True):
                weights += [of_input, recurrent.simulated(), bias, none]
            given = self.input.multiplied(x).float()
            packed = pack_padded_sequence(given, lengths.cpu(), batch_first=True, enforce_sorted=False)
            settings = (True, 1, 0.0, True, True)  # biases, layers, dropout, training, both directions
            y = torch._VF.lstm(packed.data, packed.batch_sizes, (start, start), weights, *settings)[0]
            back = PackedSequence(y, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
            return pad_packed_sequence(back, batch_first=True, total_length=T)[0]

    def _show(self, y: Tensor, order: Tensor) -> None:
        """Call the recurrent matrices that somebody watches, on all h_{t-1} (B, T, u) that they have multiplied."""
        ahead, back = y.detach().chunk(2, dim=-1)
        in_order = ((self.ahead, ahead), (self.back, back.gather(1, order[..., None].expand_as(back))))
        for recurrent, h in in_order:
            if recurrent._forward_pre_hooks:
                recurrent(F.pad(h[:, :-1], (0, 0, 1, 0)))


def _reversed(lengths: Tensor, n_tokens: int) -> Tensor:
    """lengths (B,) -> (B, T) int64: the tokens of each message from its last to its first, then padding in place."""
    t = torch.arange(n_tokens, device=lengths.device)[None]
    back = lengths[:, None] - 1 - t
    return torch.where(back >= 0, back, t)


class _BothDirections(torch.autograd.Function):
    """Gates of all tokens -> h of all tokens, both directions side by side in every product.

    a (B, T, 8u), weights (2, 4u, u), order (B, T) of the backward direction, rounds: whether h is rounded to steps of
    1/127 before it is multiplied, of each direction -> (B, T, 2u). The rounding's gradient passes straight through.

    Written out because autograd's record of a loop over tokens costs several times its arithmetic; always in float32.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, weights: Tensor, order: Tensor, rounds: tuple[bool, bool]) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            (B, T), u = order.shape, weights.shape[2]
            R, rows = weights.float(), _Rows(order)
            z = rows.by_token(a.float())  # (T, 2, B, 4u): gates, in the end
            c, tanh_c, y = torch.empty(3, T, 2, B, u, device=a.device)
            h = torch.empty_like(y) if any(rounds) else y  # as it is multiplied in the next step
            gates, sigmoids, (i, f, g, o) = z.unbind(), z[..., : 2 * u].unbind(), (p.unbind() for p in z.split(u, -1))
            transposed = R.transpose(1, 2)
            for t in range(T):
                if t:
                    gates[t].baddbmm_(h[t - 1], transposed)
                sigmoids[t].sigmoid_()
                g[t].tanh_()
                o[t].sigmoid_()
                torch.mul(i[t], g[t], out=c[t])
                if t:
                    c[t].addcmul_(f[t], c[t - 1])
                torch.mul(torch.tanh(c[t], out=tanh_c[t]), o[t], out=y[t])
                if any(rounds):
                    _round(y[t], rounds, h[t])
            ctx.save_for_backward(z, c, tanh_c, h, R, order)
            ctx.dtypes = a.dtype, weights.dtype
            return rows.by_message(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, c, tanh_c, h, R, order = ctx.saved_tensors
        T, u, rows = z.shape[0], R.shape[2], _Rows(order)
        with torch.autocast(z.device.type, enabled=False):
            dy = rows.by_token(grads[0].float())  # (T, 2, B, u)
            i, f, g, o = z.split(u, dim=-1)
            # First what dL/dc (of i, f, g) and dL/dh (of o) are multiplied by to be dL/dz, then that.
            dz = torch.empty_like(z)
            di, df, dg, do = dz.split(u, dim=-1)
            torch.mul(_slope(i), g, out=di)
            torch.mul(_slope(f[1:]), c[:-1], out=df[1:])
            df[0].zero_()
            torch.mul(1 - g * g, i, out=dg)
            torch.mul(_slope(o), tanh_c, out=do)
            through = o * (1 - tanh_c * tanh_c)  # dL/dh of which goes on to c
            of_c, of_h, f_at = dz[..., : 3 * u].unflatten(-1, (3, u)).unbind(), do.unbind(), f.unbind()
            dh, dc = dy[T - 1], torch.zeros_like(dy[0])
            for t in range(T - 1, -1, -1):
                dc = dc.addcmul_(dh, through[t])
                of_c[t].mul_(dc[..., None, :])
                of_h[t].mul_(dh)
                if t:
                    dh = dy[t - 1].baddbmm_(dz[t], R)
                    dc.mul_(f_at[t])
            later = dz[1:].transpose(0, 1).flatten(1, 2)  # (2, (T - 1) B, 4u)
            before = h[:-1].transpose(0, 1).flatten(1, 2)  # (2, (T - 1) B, u)
            found = later.transpose(1, 2) @ before
            return rows.by_message(dz).to(ctx.dtypes[0]), found.to(ctx.dtypes[1]), None, None


def _slope(sigmoid: Tensor) -> Tensor:
    """s (1 - s)."""
    return torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)


def _round(h: Tensor, rounds: tuple[bool, bool], out: Tensor) -> None:
    """h (2, B, u) as it is multiplied: of the directions that round, in steps of 1/127."""
    torch.mul(h, STEPS, out=out).round_().mul_(RECURRENT_STEP)
    for direction in (0, 1):
        if not rounds[direction]:
            out[direction] = h[direction]


class _Rows:
    """From messages to the order in which each direction reads, and back: order (B, T) of the backward direction."""

    def __init__(self, order: Tensor):
        B, T = self.sizes = order.shape
        b, t = torch.arange(B, device=order.device), torch.arange(T, device=order.device)
        token = torch.stack([b[:, None] * T + t, b[:, None] * T + order])  # (2, B, T): b T + t
        place = torch.stack([t[None].expand(B, T), order])  # (2, B, T): when it is read; reversing is its own inverse
        direction = torch.tensor([0, 1], device=order.device)[:, None, None]
        self.to_token = (2 * token + direction).permute(2, 0, 1).flatten()  # (T 2 B,)
        self.to_message = ((2 * place + direction) * B + b[:, None]).permute(1, 2, 0).flatten()  # (B T 2,)

    def by_token(self, x: Tensor) -> Tensor:
        """(B, T, 2n) -> (T, 2, B, n)."""
        B, T = self.sizes
        return x.reshape(2 * B * T, -1).index_select(0, self.to_token).view(T, 2, B, -1)

    def by_message(self, x: Tensor) -> Tensor:
        """The inverse of `by_token`."""
        B, T = self.sizes
        return x.view(2 * B * T, -1).index_select(0, self.to_message).view(B, T, -1)
