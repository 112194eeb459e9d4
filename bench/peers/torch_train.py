"""Training steps of the emoji-sized HoVLE teacher and of the mmMamba-linear student (stage 3) in plain PyTorch, autocast
bf16: the peer of bench/training.ts. Same shapes, same work: batch 128, 16 image tokens, sequence 32, output head on the
positions that carry a label (teacher) or on all answer positions (student), clipping and fused AdamW.
Reads a number of steps per line from standard input and answers with the milliseconds of each step as a JSON list.
Usage: torch_train.py teacher|student THREADS BATCH LENGTH VOCAB LABELS [cpu|cuda:0]"""
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

mode, threads, batch, length, vocab, labels = sys.argv[1], *(int(x) for x in sys.argv[2:7])
device = torch.device(sys.argv[7] if len(sys.argv) > 7 else "cpu")
torch.set_default_device(device)
torch.set_num_threads(threads)
torch.manual_seed(0)
C, HEADS, KV, D, MLP, LAYERS, PATCH, SIZE = 192, 6, 3, 32, 512, 8, 8, 64


class RmsNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), 1e-6)


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.wqkv = nn.Linear(C, (HEADS + 2 * KV) * D, bias=False)
        self.wo = nn.Linear(HEADS * D, C, bias=False)

    def forward(self, x, cos, sin):
        B, L, _ = x.shape
        q, k, v = self.wqkv(x).view(B, L, -1, D).transpose(1, 2).split((HEADS, KV, KV), 1)
        o = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v, is_causal=True, enable_gqa=True)
        return self.wo(o.transpose(1, 2).reshape(B, L, -1))


class Mixer(nn.Module):
    """Mamba-2 mixer; SSD in its quadratic form, the fastest at this length."""

    def __init__(self):
        super().__init__()
        self.vkq = nn.Linear(C, (2 * KV + HEADS) * D, bias=False)
        self.g_proj = nn.Linear(C, HEADS * D, bias=False)
        self.in_proj = nn.Linear(C, HEADS, bias=False)
        self.conv = nn.Parameter(torch.randn((2 * KV + HEADS) * D, 2) * 0.1)
        self.conv_bias = nn.Parameter(torch.zeros((2 * KV + HEADS) * D))
        self.A_log = nn.Parameter(torch.ones(HEADS))
        self.dt_bias = nn.Parameter(torch.full((HEADS,), -4.0))
        self.norm = RmsNorm(D)
        self.o_proj = nn.Linear(HEADS * D, C, bias=False)

    def forward(self, x, cos, sin):
        B, L, _ = x.shape
        u = self.vkq(x)
        w = self.conv.to(u.dtype)
        u = F.silu(u * w[:, 1] + F.pad(u, (0, 0, 1, 0))[:, :-1] * w[:, 0] + self.conv_bias.to(u.dtype))
        v, k, q = u.view(B, L, -1, D).transpose(1, 2).split((KV, KV, HEADS), 1)
        v, k = (t.repeat_interleave(HEADS // KV, 1) for t in (v, k))
        dt = F.softplus(self.in_proj(x).float() + self.dt_bias).transpose(1, 2)
        cs = (dt * -self.A_log.exp()[:, None]).cumsum(-1)
        decay = (cs[..., :, None] - cs[..., None, :]).masked_fill(MASK[:L, :L], float("-inf")).exp()
        y = ((q @ k.transpose(-1, -2)) * (decay * dt[..., None, :]).to(q.dtype)) @ v
        g = F.silu(self.g_proj(x).view(B, L, HEADS, D))
        return self.o_proj((self.norm(y.transpose(1, 2)) * g).reshape(B, L, -1))


class Block(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.attention_norm, self.attention, self.ffn_norm = RmsNorm(C), mixer(), RmsNorm(C)
        self.w1, self.w3, self.w2 = nn.Linear(C, MLP, bias=False), nn.Linear(C, MLP, bias=False), nn.Linear(MLP, C, bias=False)

    def forward(self, h, cos, sin):
        h = h + self.attention(self.attention_norm(h), cos, sin)
        x = self.ffn_norm(h)
        return h + self.w2(F.silu(self.w1(x)) * self.w3(x))


class Model(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.patch = nn.Conv2d(3, C, PATCH, PATCH)
        self.pos = nn.Parameter(torch.randn((SIZE // PATCH) ** 2, C) * 0.02)
        self.p0, self.p2 = nn.Linear(4 * C, C), nn.Linear(C, C)
        self.embed = nn.Embedding(vocab, C)
        self.layers = nn.ModuleList(Block(mixer) for _ in range(LAYERS))
        self.norm, self.output = RmsNorm(C), nn.Linear(C, vocab, bias=False)

    def forward(self, ids, pixels, rows):
        B = ids.shape[0]
        g = SIZE // PATCH
        x = self.patch(pixels).flatten(2).transpose(1, 2) + self.pos
        x = x.view(B, g // 2, 2, g // 2, 2, C).permute(0, 1, 3, 2, 4, 5).reshape(B, g * g // 4, 4 * C)
        x = self.p2(F.gelu(self.p0(x)))
        h = self.embed(ids)
        h = torch.cat((h[:, :2].to(x.dtype), x, h[:, 2 + x.shape[1]:].to(x.dtype)), 1)
        t = torch.arange(ids.shape[1])[:, None] * (1e6 ** (-torch.arange(0, D, 2) / D))[None]
        cos, sin = (torch.cat((f(t), f(t)), -1).to(x.dtype) for f in (torch.cos, torch.sin))
        for layer in self.layers:
            h = layer(h, cos, sin)
        return self.output(self.norm(h.reshape(-1, C)[rows]))


MASK = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
ids = torch.randint(0, vocab, (batch, length))
rows = (torch.arange(batch)[:, None] * length + torch.arange(length - labels, length)[None]).flatten()
target = torch.randint(0, vocab, (rows.numel(),))
pixels = torch.randn(batch, 3, SIZE, SIZE)
teacher = Model(Attention)
student = Model(Mixer) if mode == "student" else None
if student is not None:
    for name, p in student.named_parameters():
        p.requires_grad = any(part in name for part in ("vkq", "g_proj", "in_proj", "conv", "A_log", "dt_bias", ".attention.norm", "o_proj"))
trained = student if student is not None else teacher
params = [p for p in trained.parameters() if p.requires_grad]
optim = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.05, fused=True)


def step():
    with torch.autocast(device.type, torch.bfloat16):
        if student is None:
            loss = F.cross_entropy(teacher(ids, pixels, rows).float(), target, label_smoothing=0.05)
        else:
            with torch.no_grad():
                p = F.log_softmax(teacher(ids, pixels, rows).float(), -1)
            loss = F.kl_div(F.log_softmax(student(ids, pixels, rows).float(), -1), p, log_target=True, reduction="batchmean")
    loss.backward()
    nn.utils.clip_grad_norm_(params, 5.0)
    optim.step()
    optim.zero_grad(set_to_none=True)


def wait():
    if device.type == "cuda":
        torch.cuda.synchronize()


for line in sys.stdin:
    count = int(line)
    times = []
    wait()
    begin = time.perf_counter()
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    wait()
    if device.type == "cuda":  # steps are queued, not waited for one by one
        times = [1e3 * (time.perf_counter() - begin) / count] * count
    print(json.dumps(times), flush=True)
