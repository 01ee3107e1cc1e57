"""One small network per coordinate, all evaluated side by side as batched matrix products.

Network i sees only the features of the coordinates before it (its first weight is masked), so that evaluating all
of them is one pass, and sampling, which needs them one after the other, costs about as much in total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ConditionerStack"]


class ConditionerStack(nn.Module):
    """D networks with two hidden layers (the second residual), and beside each a linear function of its inputs.

    Args:
        n_inputs: per network, how many leading features it may see.
        n_outputs: per network, the number of its outputs. Networks with equally many must be neighbours.
        n_features: total number of features F.
        hidden: width H of both hidden layers.
        generator: draws the initial weights. Output weights start at zero.

    Shapes:
        :meth:`forward`: features (B, F) -> per run of equal output counts a pair: outputs (D_run, P_run, B) and the
        linear function (D_run, 1, B). The batch is the contiguous axis of the outputs, as the splines want it.
    """

    def __init__(
        self,
        n_inputs: Sequence[int],
        n_outputs: Sequence[int],
        *,
        n_features: int,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        count = len(n_inputs)
        self.n_inputs = tuple(n_inputs)
        self.runs = _runs(n_outputs)
        if len({size for _, _, size in self.runs}) != len(self.runs):
            raise ValueError("networks with equally many outputs must be neighbours")
        self.mask: Tensor
        visible = torch.arange(n_features)[None] < torch.tensor(self.n_inputs)[:, None]
        self.register_buffer("mask", visible[:, None, :].float(), persistent=False)
        scale = [1.0 / math.sqrt(max(1, n)) for n in self.n_inputs]
        first = torch.randn(count, hidden, n_features, generator=generator) * torch.tensor(scale)[:, None, None]
        second = torch.randn(count, hidden, hidden, generator=generator) / math.sqrt(hidden)
        bias = torch.randn(count, hidden, 1, generator=generator) * 0.3
        self.weight1 = nn.Parameter(first * self.mask)
        self.bias1 = nn.Parameter(bias)
        self.weight2 = nn.Parameter(second)
        self.bias2 = nn.Parameter(torch.zeros(count, hidden, 1))
        self.linear = nn.Parameter(torch.zeros(count, 1, n_features))
        self.weight_out = nn.ParameterList([torch.zeros(b - a, p, hidden) for a, b, p in self.runs])
        self.bias_out = nn.ParameterList([torch.zeros(b - a, p, 1) for a, b, p in self.runs])

    def forward(self, features: Tensor, blocks: int = 4) -> list[tuple[Tensor, Tensor]]:
        """Outputs and linear parts of every network for features (B, F), per run of equal output counts.

        ``blocks`` splits each run of networks so that early ones skip the features they cannot see and the
        working set stays in cache; it changes the speed only.
        """
        results = []
        columns = features.T.contiguous()
        # torch.split, whose backward is one concatenation, instead of slices, which pad with zeros each
        sizes = [max(1, math.ceil((b - a) / blocks)) for a, b, _ in self.runs]
        pieces = [_chunks(a, b, size) for (a, b, _), size in zip(self.runs, sizes, strict=True)]
        lengths = [b - a for run in pieces for a, b in run]
        masked = (self.weight1 * self.mask, self.bias1, self.weight2, self.bias2, self.linear * self.mask)
        shared_parts = list(zip(*(torch.split(parameter, lengths) for parameter in masked), strict=True))
        taken = 0
        for run, chunks in enumerate(pieces):
            inner = [b - a for a, b in chunks]
            out_parts = zip(
                torch.split(self.weight_out[run], inner), torch.split(self.bias_out[run], inner), strict=True
            )
            outputs, shifts = [], []
            for (a, b), (weight_out, bias_out) in zip(chunks, out_parts, strict=True):
                weight1, bias1, weight2, bias2, linear = shared_parts[taken]
                taken += 1
                seen = max(1, max(self.n_inputs[a:b]))
                visible = columns[:seen].expand(b - a, -1, -1)
                hidden = functional.silu(torch.baddbmm(bias1, weight1[..., :seen], visible))
                hidden = hidden + functional.silu(torch.baddbmm(bias2, weight2, hidden))
                outputs.append(torch.baddbmm(bias_out, weight_out, hidden))
                shifts.append(torch.bmm(linear[..., :seen], visible))
            results.append((torch.cat(outputs), torch.cat(shifts)))
        return results

    def single(self, network: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (P, B) and linear part (1, B) of one network, which reads the first of the feature rows (F, B)."""
        seen = self.n_inputs[network]
        visible = columns[:seen]
        hidden = functional.silu(torch.addmm(self.bias1[network], self.weight1[network, :, :seen], visible))
        hidden = hidden + functional.silu(torch.addmm(self.bias2[network], self.weight2[network], hidden))
        run, start = next((r, a) for r, (a, b, _) in enumerate(self.runs) if a <= network < b)
        result = torch.addmm(self.bias_out[run][network - start], self.weight_out[run][network - start], hidden)
        return result, self.linear[network, :, :seen] @ visible


def _chunks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]


def _runs(sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, stop, size) of each maximal run of equal sizes."""
    runs: list[tuple[int, int, int]] = []
    for index, size in enumerate(sizes):
        if runs and runs[-1][2] == size:
            runs[-1] = (runs[-1][0], index + 1, size)
        else:
            runs.append((index, index + 1, size))
    return runs
