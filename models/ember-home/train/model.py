"""The text model of the Gemma 4 family with fake-quantized weights and activations, small enough to read.

`Model(config).forward` is the forward pass of the schema. With `quant = False` it is the float twin. Training needs logits
only where the answer stands, and the upper layers write no K/V: `at` names those positions, and nothing above the last
cache-owning layer is computed for the others.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 10
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    global_head_dim: int = 64
    hidden_size_per_layer_input: int = 32
    num_kv_shared_layers: int = 5
    sliding_window: int = 128

    @property
    def first_shared(self):
        return self.num_hidden_layers - self.num_kv_shared_layers

    def is_full(self, i):
        return i % 5 == 4

    def owner(self, i):
        """The layer whose K/V cache layer i reads."""
        return i if i < self.first_shared else max(j for j in range(self.first_shared) if self.is_full(j) == self.is_full(i))


class RoundTo(torch.autograd.Function):
    """Static activation rounding to int8 steps; the gradient passes where nothing was clipped. The step is frozen."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return (x / scale).round().clamp(-128, 127) * scale

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        return g * (x.abs() <= 127.5 * scale), None


class RoundRows(torch.autograd.Function):
    """Weights on their codes with a learned scale per row (straight-through; for the scale, LSQ's gradient)."""

    @staticmethod
    def forward(ctx, w, scale, low, high):
        v = w / scale
        codes = v.round().clamp_(low, high)
        ctx.save_for_backward(v, codes, scale)
        ctx.bounds = low, high
        return codes * scale

    @staticmethod
    def backward(ctx, g):
        v, codes, scale = ctx.saved_tensors
        inside = (v >= ctx.bounds[0]) & (v <= ctx.bounds[1])
        return g * inside, (g * (codes - v * inside)).sum(1, keepdim=True), None, None


def round_rows(w, log_scale, bits):
    return RoundRows.apply(w, log_scale.exp()[:, None], -(1 << bits - 1), (1 << bits - 1) - 1)


def best_row_scales(w, bits):
    """The scale per row with the least squared error, from a grid."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    top = w.abs().amax(1, keepdim=True).clamp_min(1e-8)
    best, best_error = top / -low, torch.full_like(top, math.inf)
    for part in torch.linspace(0.15, 1.2, 43):
        s = top * part / (1 if bits == 2 else -low)
        error = ((w / s).round().clamp(low, high) * s - w).square().sum(1, keepdim=True)
        best = torch.where(error < best_error, s, best)
        best_error = torch.minimum(error, best_error)
    return best[:, 0]


def bf16(w):
    """Rounded to BF16, with the gradient passed through."""
    return w + (w.bfloat16().float() - w).detach()


class Step(nn.Module):
    """A static activation step, calibrated on what it saw and then frozen."""

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.quant, self.calibrating, self.top = False, False, 0.0

    def forward(self, x):
        if self.calibrating:
            # The far tail is clipped: one outlier must not make every step coarse.
            flat = x.detach().abs().flatten()
            high = flat.kthvalue(max(1, int(flat.numel() * 0.9999))).values.item()
            self.top = max(self.top, 0.7 * high + 0.3 * flat.max().item())
        return RoundTo.apply(x, self.log.exp()) if self.quant else x


class Linear(nn.Module):
    def __init__(self, n, k, bits, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, k) * gain / math.sqrt(k))
        self.log_scale = nn.Parameter(torch.zeros(n))
        self.out = Step()
        self.bits, self.quant, self.kept = bits, False, None

    def rounded(self):
        return round_rows(self.weight, self.log_scale, self.bits) if self.quant else self.weight

    def forward(self, x):
        """`x` is already on the grid of the projection's input."""
        w = self.rounded() if self.kept is None else self.kept
        return self.out(F.linear(x.to(w.dtype), w).float())

    def dtype(self):
        """What operands of products are in."""
        return self.weight.dtype if self.kept is None else self.kept.dtype


class Table(nn.Module):
    """An embedding table with a scale per row and block."""

    def __init__(self, vocab, blocks, width, bits, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab, blocks * width) * std)
        self.log_scale = nn.Parameter(torch.zeros(vocab * blocks))
        self.blocks, self.width, self.bits, self.quant, self.kept = blocks, width, bits, False, None

    def rounded(self):
        return round_rows(self.weight.view(-1, self.width), self.log_scale, self.bits).view_as(self.weight) if self.quant else self.weight

    def forward(self, ids):
        return F.embedding(ids, self.rounded() if self.kept is None else self.kept)


class Norm(nn.Module):
    def __init__(self, width, value=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), value))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), bf16(self.weight), 1e-6)


def rope_table(cfg, full, length):
    d = cfg.global_head_dim if full else cfg.head_dim
    j = torch.arange(d // 2, dtype=torch.float64)
    inv = (1e6 if full else 1e4) ** (-2 * j / d)
    if full:  # a quarter of the pairs turns, the others stand still
        inv[d // 8:] = 0
    angle = torch.arange(length, dtype=torch.float64)[:, None] * inv
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def take(x, at):
    """[B, A, H] from x [B, T, H] at the positions `at` [B, A]."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class Layer(nn.Module):
    def __init__(self, cfg, i):
        super().__init__()
        h, p = cfg.hidden_size, cfg.hidden_size_per_layer_input
        self.full, self.owns = cfg.is_full(i), i < cfg.first_shared
        self.d = cfg.global_head_dim if self.full else cfg.head_dim
        self.heads, self.kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
        inter = cfg.intermediate_size * (1 if self.owns else 2)
        mlp_bits = 4 if self.owns else 2
        self.attn_in, self.o_in, self.mlp_in, self.down_in, self.gate_in, self.proj_in = (Step() for _ in range(6))
        self.q = Linear(self.heads * self.d, h, 4)
        if self.owns:
            self.k, self.v = Linear(self.kv_heads * self.d, h, 4), Linear(self.kv_heads * self.d, h, 4)
            self.k_norm = Norm(self.d, self.d ** -0.25)
            self.k_step, self.v_step = Step(), Step()
        self.o = Linear(h, self.heads * self.d, 4)
        self.gate, self.up, self.down = Linear(inter, h, mlp_bits), Linear(inter, h, mlp_bits), Linear(h, inter, mlp_bits)
        self.ple_gate, self.ple_proj = Linear(p, h, 8), Linear(h, p, 8)
        self.q_norm = Norm(self.d, self.d ** -0.25)
        self.input_norm, self.mlp_norm = Norm(h), Norm(h)
        self.post_attn, self.post_mlp, self.post_ple = Norm(h, 0.3), Norm(h, 0.3), Norm(h, 0.15)
        self.scalar = nn.Parameter(torch.ones(1))

    def keys_values(self, a, rope):
        """[B, kv_heads, T, d] from the (rounded) normed input [B, T, H]."""
        b, t, _ = a.shape
        k = rotate(self.k_norm(self.k(a).view(b, t, self.kv_heads, self.d)), rope[0][:t, None], rope[1][:t, None])
        v = F.rms_norm(self.v(a).view(b, t, self.kv_heads, self.d), (self.d,), None, 1e-6)
        return self.k_step(k).transpose(1, 2), self.v_step(v).transpose(1, 2)

    def forward(self, h, kv, rope, mask, query, at, ple):
        """h [B, T, H]; kv of all positions, or None for a layer that owns its own; mask broadcast to [B, heads, A, T]; query
        positions [B or 1, A]; at [B, A] where only these positions go on, else None; ple [B, A, P] -> ([B, A, H], kv)."""
        a = self.attn_in(self.input_norm(h))
        kv = self.keys_values(a, rope) if self.owns else kv
        if at is not None:
            h, a = take(h, at), take(a, at)
        b, n, _ = h.shape
        cos, sin = (x[query][..., None, :] for x in rope)
        q = rotate(self.q_norm(self.q(a).view(b, n, self.heads, self.d)), cos, sin).transpose(1, 2)
        q, k, v = (x.to(self.q.dtype()) for x in (q, *(x.repeat_interleave(self.heads // self.kv_heads, 1) for x in kv)))
        weights = (q @ k.mT).float().masked_fill(~mask, -math.inf).softmax(-1)
        y = (weights.to(v.dtype) @ v).float().transpose(1, 2).reshape(b, n, -1)
        h = h + self.post_attn(self.o(self.o_in(y)))
        m = self.mlp_in(self.mlp_norm(h))
        m = F.gelu(self.gate(m), approximate="tanh") * self.up(m)
        h = h + self.post_mlp(self.down(self.down_in(m)))
        g = F.gelu(self.ple_gate(self.gate_in(h)), approximate="tanh") * ple
        h = h + self.post_ple(self.ple_proj(self.proj_in(g)))
        return h * bf16(self.scalar), kv


class Model(nn.Module):
    def __init__(self, cfg, length=1024):
        super().__init__()
        self.cfg = cfg
        h, p, n = cfg.hidden_size, cfg.hidden_size_per_layer_input, cfg.num_hidden_layers
        self.embed = Table(cfg.vocab_size, 1, h, 2, h ** -0.5)
        self.ple_table = Table(cfg.vocab_size, n, p, 4, p ** -0.5)
        self.ple_project = nn.Parameter(torch.randn(n * p, h))
        self.ple_norm = Norm(p)
        self.layers = nn.ModuleList(Layer(cfg, i) for i in range(n))
        self.norm = Norm(h)
        self.head_in = Step()
        self.head = Linear(cfg.vocab_size, h, 2, gain=1.0)
        for full in (False, True):
            for name, t in zip(("cos", "sin"), rope_table(cfg, full, length)):
                self.register_buffer(f"{name}_{'full' if full else 'sliding'}", t, persistent=False)

    def ple(self, h, ids, low, high):
        """[B, A, high - low, P]: the per-layer inputs of layers low to high."""
        p, n = self.cfg.hidden_size_per_layer_input, high - low
        x = F.linear(h, bf16(self.ple_project[low * p:high * p])) * self.cfg.hidden_size ** -0.5
        x = self.ple_norm(x.view(*ids.shape, n, p))
        table = self.ple_table(ids).view(*ids.shape, -1, p)[..., low:high, :]
        return (x + table * math.sqrt(p)) * 2 ** -0.5

    def mask(self, full, query, length):
        """True where a query position [B, A] may look."""
        back = query[..., None] - torch.arange(length, device=query.device)
        ok = back >= 0
        return ((ok if full else ok & (back < self.cfg.sliding_window)))[:, None]

    def forward(self, ids, at=None):
        """ids [B, T] (padded at the end) -> logits [B, T, V], or [B, A, V] at the positions `at` [B, A]."""
        cfg, (b, t) = self.cfg, ids.shape
        query = torch.arange(t, device=ids.device)[None]
        h = start = self.embed(ids) * math.sqrt(cfg.hidden_size)
        last = cfg.first_shared - 1  # the last layer that owns a cache: of the prompt it needs K and V alone
        ple = self.ple(h, ids, 0, last)
        ropes = {full: (getattr(self, f"cos_{'full' if full else 'sliding'}"), getattr(self, f"sin_{'full' if full else 'sliding'}")) for full in (False, True)}
        masks = {full: self.mask(full, query, t) for full in (False, True)}
        caches = {}
        for i, layer in enumerate(self.layers):
            if i == last:
                if at is not None:
                    query, start, ids = at, take(start, at), ids.gather(1, at)
                    masks = {full: self.mask(full, query, t) for full in (False, True)}
                ple = self.ple(start, ids, last, cfg.num_hidden_layers)
            full, owner = layer.full, cfg.owner(i)
            h, caches[owner] = layer(h, caches.get(owner), ropes[full], masks[full], query, at if i == last else None, ple[..., i - (0 if i < last else last), :])
        return self.logits(h)

    def logits(self, h):
        return 30 * torch.tanh(self.head(self.head_in(self.norm(h))) / 30)

    def hold_weights(self, dtype):
        """Round the weights once for all the batches of a step. Products are computed in `dtype` until `release_weights`."""
        self.held = [(m, m.rounded()) for m in self.modules() if isinstance(m, (Linear, Table))]
        for m, rounded in self.held:
            m.kept = rounded.detach().to(dtype if isinstance(m, Linear) else rounded.dtype).requires_grad_()

    def release_weights(self):
        """Hand the gradients of the rounded weights on to the weights and their scales."""
        torch.autograd.backward([rounded for _, rounded in self.held], [m.kept.grad.to(rounded.dtype) for m, rounded in self.held])
        for m, _ in self.held:
            m.kept = None
        self.held = []

    def steps(self):
        return [m for m in self.modules() if isinstance(m, Step)]

    def quantize(self, on):
        for m in self.modules():
            if hasattr(m, "quant"):
                m.quant = on

    @torch.no_grad()
    def calibrate(self, batches, weights=True):
        """Activation steps from a pass with unrounded activations; weight scales from the least squared error."""
        self.quantize(False)
        for m in self.modules():
            if isinstance(m, (Linear, Table)):
                m.quant = not weights
        for s in self.steps():
            s.calibrating, s.top = True, 0.0
        for ids, at in batches:
            self(ids, at)
        for s in self.steps():
            s.calibrating = False
            s.log.fill_(math.log(max(s.top, 1e-6) / 127))
        for m in self.modules() if weights else ():
            if isinstance(m, Linear):
                m.log_scale.copy_(best_row_scales(m.weight, m.bits).log())
            elif isinstance(m, Table):
                m.log_scale.copy_(best_row_scales(m.weight.view(-1, m.width), m.bits).log())
        self.quantize(True)
