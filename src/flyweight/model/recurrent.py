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
        order = _reversed((mask[:, 0, 0] == 0).sum(dim=1), x.shape[1])
        weights = torch.stack([self.ahead.simulated(), self.back.simulated()])  # (2, 4u, u)
        y: Tensor = _BothDirections.apply(self.input(x), weights, order, (self.ahead.rounds, self.back.rounds))
        self._show(y, order)
        return self.norm(x + F.dropout(y, dropout, self.training))

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
            B, T, u = a.shape[0], a.shape[1], weights.shape[2]
            R = weights.float()
            z = _by_token(a.float(), order)  # (T, 2, B, 4u): gates, in the end
            c = z.new_zeros(T + 1, 2, B, u)
            h = z.new_zeros(T + 1, 2, B, u)  # as it is multiplied in the next step
            y = z.new_empty(T, 2, B, u)
            transposed = R.transpose(1, 2)
            for t in range(T):
                gates = z[t].baddbmm_(h[t], transposed)
                gates[..., : 2 * u].sigmoid_()
                gates[..., 2 * u : 3 * u].tanh_()
                gates[..., 3 * u :].sigmoid_()
                i, f, g, o = gates.split(u, dim=-1)
                torch.mul(f, c[t], out=c[t + 1]).addcmul_(i, g)
                torch.tanh(c[t + 1], out=y[t]).mul_(o)
                h[t + 1] = y[t]
                for direction in (0, 1):
                    if rounds[direction]:
                        h[t + 1, direction].mul_(STEPS).round_().mul_(RECURRENT_STEP)
            ctx.save_for_backward(z, c, h, R, order)
            ctx.dtypes = a.dtype, weights.dtype
            return _by_message(y, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, c, h, R, order = ctx.saved_tensors
        T, u = z.shape[0], R.shape[2]
        with torch.autocast(z.device.type, enabled=False):
            dy = _by_token(grads[0].float(), order)  # (T, 2, B, u)
            i, f, g, o = z.split(u, dim=-1)
            tanh_c = c[1:].tanh()
            # dL/dz is dL/dc times the first three, dL/dh times the fourth; dL/dc gets dL/dh times `through`.
            of_c = torch.stack([g * i * (1 - i), c[:-1] * f * (1 - f), i * (1 - g * g)], dim=-2)  # (T, 2, B, 3, u)
            of_h = tanh_c * o * (1 - o)
            through = o * (1 - tanh_c * tanh_c)
            dz = torch.empty_like(z)
            dh, dc = dy[T - 1], torch.zeros_like(dy[0])
            for t in range(T - 1, -1, -1):
                dc = dc.addcmul(dh, through[t])
                torch.mul(of_c[t], dc[..., None, :], out=dz[t, ..., : 3 * u].unflatten(-1, (3, u)))
                torch.mul(of_h[t], dh, out=dz[t, ..., 3 * u :])
                if t:
                    dh = torch.baddbmm(dy[t - 1], dz[t], R)
                    dc = dc * f[t]
            rows = dz.transpose(0, 1).flatten(1, 2)  # (2, T B, 4u)
            before = h[:-1].transpose(0, 1).flatten(1, 2)  # (2, T B, u)
            found = rows.transpose(1, 2) @ before
            return _by_message(dz, order).to(ctx.dtypes[0]), found.to(ctx.dtypes[1]), None, None


def _by_token(x: Tensor, order: Tensor) -> Tensor:
    """(B, T, 2n) -> (T, 2, B, n): in the order in which each direction reads."""
    ahead, back = x.unflatten(-1, (2, -1)).unbind(2)
    back = back.gather(1, order[..., None].expand_as(back))
    return torch.stack([ahead, back]).permute(2, 0, 1, 3).contiguous()


def _by_message(x: Tensor, order: Tensor) -> Tensor:
    """The inverse of `_by_token`."""
    ahead, back = x.permute(1, 2, 0, 3)  # (B, T, n) each
    return torch.cat([ahead, back.gather(1, order[..., None].expand_as(back))], dim=-1)
