"""Building blocks of the connector: rotary positions, SwiGLU, gradient scaling, space-to-depth."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound on the learned temperature of L_ITC


class RMSNorm(nn.RMSNorm):
    """RMS normalisation in float32, whatever autocast makes of its input."""

    def forward(self, x):
        return super().forward(x.float())


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x) without biases; hidden width int(2/3 * 4 * width)."""

    def __init__(self, width):
        super().__init__()
        hidden = int(2 / 3 * 4 * width)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


def rotary_table(tokens, head_dim, device, base=10000.0):
    """Cosine and sine of 1-D rotary positions over the raster index: two tensors N x head_dim, float32."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(tokens, device=device, dtype=torch.float32), frequencies)  # N d/2
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, table):
    """Apply rotary positions (half rotation) to B x H x N x d."""
    cos, sin = table
    first, second = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x)


def attention_map(q, k, scale):
    """softmax(scale * q k^T) of B x H x N x d, in float32 whatever autocast is on: B x H x N x N."""
    with torch.autocast(q.device.type, enabled=False):
        return (scale * q.float() @ k.float().transpose(-2, -1)).softmax(dim=-1)


class _GradientScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def scale_gradient(x, scale):
    """Identity forward; the gradient is multiplied by `scale` on the way back."""
    return _GradientScale.apply(x, scale) if x.requires_grad and scale != 1 else x


def space_to_depth(tokens, grid):
    """Merge 2 x 2 cells of a token grid: B x hw x C -> B x (h/2 w/2) x 4C and the new grid.

    Channels are ordered (row in cell, column in cell, channel); an odd grid loses its last row or column.
    """
    (h, w), (b, _, c) = grid, tokens.shape
    h2, w2 = h // 2, w // 2
    cells = tokens.view(b, h, w, c)[:, :h2 * 2, :w2 * 2].reshape(b, h2, 2, w2, 2, c)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(b, h2 * w2, 4 * c), (h2, w2)
