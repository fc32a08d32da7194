"""The convolution layer: each token sees its neighbours, then residual and LayerNorm.

    x_t = norm(x_t + f(W [x_{t-r} ; ... ; x_t ; ... ; x_{t+r}] + b))       W (D, width D), width = 2r + 1

Beyond the ends of a message there are zeros. The columns of W are neighbour-major: the first D of them multiply
x_{t-r}. Source: convolutions over words, Kim 2014, arXiv:1408.5882; residual ones, Gehring et al. 2017,
arXiv:1705.03122.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.model.linear import Linear


class ConvolutionLayer(nn.Module):
    """See the module. `convolution` (D, width D) multiplies the neighbours of a token as one vector."""

    def __init__(self, hidden: int, width: int, activation: Callable[[Tensor], Tensor], eps: float):
        super().__init__()
        self.width, self.activation = width, activation
        self.convolution = Linear(width * hidden, hidden)
        nn.init.normal_(self.convolution.weight, std=(width * hidden) ** -0.5)
        self.norm = nn.LayerNorm(hidden, eps=eps)

    def matrices(self) -> Iterator[tuple[str, Linear]]:
        """(name within the layer, module), in the order in which they multiply."""
        yield "convolution", self.convolution

    def norms(self) -> Iterator[tuple[str, nn.LayerNorm]]:
        """(name within the layer, module)."""
        yield "convolution.norm", self.norm

    def forward(self, x: Tensor, mask: Tensor, buckets: Tensor | None, dropout: float) -> Tensor:
        """x (B, T, D), mask (B, 1, 1, T) additive float: 0 for real tokens; buckets are not looked at -> (B, T, D)."""
        T, r = x.shape[1], self.width // 2
        real = x.masked_fill(mask[:, 0, 0, :, None] != 0, 0.0)
        padded = F.pad(real, (0, 0, r, r))  # (B, T + 2r, D)
        neighbours = torch.cat([padded[:, k : k + T] for k in range(self.width)], dim=-1)  # (B, T, width D)
        y = self.activation(self.convolution(neighbours))
        return self.norm(x + F.dropout(y, dropout, self.training))
