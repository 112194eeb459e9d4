"""The best chunked SSD forward that plain PyTorch gives on this CPU: batched matrix products over chunks, heads folded
into the batch, masked decay built once per chunk, state pass over chunks. Prints one JSON line with the fastest of
several chunk lengths and dtypes. Usage: torch_ssd.py [L H P N threads]"""
import json
import sys
import time

import torch

L, H, P, N, threads = (int(x) for x in (sys.argv[1:] + ["8192", "16", "128", "128", "2"][len(sys.argv) - 1:])[:5])
torch.set_num_threads(threads)
torch.manual_seed(0)


def ssd(x, dt, A, B, C, Q):
    """x (L,H,P), dt (L,H), A (H), B and C (L,H,N) -> y (L,H,P)"""
    T = x.dtype
    n = L // Q
    la = (dt * A).view(n, Q, H).permute(0, 2, 1)  # (n,H,Q) log-decay
    cs = la.cumsum(-1)
    xd = (x * dt[..., None].to(T)).view(n, Q, H, P).permute(0, 2, 1, 3).reshape(n * H, Q, P)
    b = B.view(n, Q, H, N).permute(0, 2, 1, 3).reshape(n * H, Q, N)
    c = C.view(n, Q, H, N).permute(0, 2, 1, 3).reshape(n * H, Q, N)
    decay = (cs[..., :, None] - cs[..., None, :]).masked_fill_(MASK[Q], float("-inf")).exp_()
    scores = torch.bmm(c, b.transpose(1, 2)).mul_(decay.view(n * H, Q, Q).to(T))
    y = torch.bmm(scores, xd)
    tail = (cs[..., -1:] - cs).exp().view(n * H, Q, 1).to(T)
    states = torch.bmm((b * tail).transpose(1, 2), xd).view(n, H, N, P).float()
    total = cs[..., -1].exp()
    state = torch.zeros(H, N, P)
    before = torch.empty(n, H, N, P)
    for i in range(n):
        before[i] = state
        state = state * total[i, :, None, None] + states[i]
    y.baddbmm_(c * cs.exp().view(n * H, Q, 1).to(T), before.view(n * H, N, P).to(T))
    return y.view(n, H, Q, P).permute(0, 2, 1, 3).reshape(L, H, P)


MASK = {Q: torch.triu(torch.ones(Q, Q, dtype=torch.bool), 1) for Q in (32, 64, 128, 256)}
best = None
with torch.no_grad():
    for T in (torch.float32, torch.bfloat16):
        x, B, C = (torch.randn(L, H, d).to(T) for d in (P, N, N))
        dt = torch.rand(L, H) * 0.1
        A = -torch.rand(H) - 0.5
        for Q in (32, 64, 128, 256):
            ssd(x, dt, A, B, C, Q)
            times = []
            for _ in range(7):
                start = time.perf_counter()
                ssd(x, dt, A, B, C, Q)
                times.append(time.perf_counter() - start)
            ms = 1e3 * sorted(times)[len(times) // 2]
            if best is None or ms < best["ms"]:
                best = {"ms": ms, "chunk": Q, "dtype": str(T).split(".")[1]}
            print(f"{T} chunk {Q}: {ms:.1f} ms", file=sys.stderr)
print(json.dumps({"torch": torch.__version__, "threads": threads, "L": L, "H": H, "P": P, "N": N, **best}))
