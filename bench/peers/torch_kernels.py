"""PyTorch's counterparts of the ops that bench/kernels.ts times, on the same shapes and device. Reads one case per line from
standard input, a JSON object {op, inputs, attrs, backward, dtype, sets}, and answers with a JSON list of {op, peer, ms}: empty
where PyTorch has no counterpart. `sets` sets of operands are taken in turn. On a GPU the calls are captured in a CUDA graph where
they can be, timed by events, the median of several rounds, as ours are. Usage: torch_kernels.py cpu|cuda:0"""
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

device = torch.device(sys.argv[1])
GPU = device.type == "cuda"
if GPU:
    torch.cuda.set_device(device)
    torch.cuda.set_stream(torch.cuda.Stream())  # all is queued here, backward passes too: graphs cannot be captured on the default stream
    torch.zeros(1, device=device)
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def draw(spec, dtype):
    if isinstance(spec, list):
        return [draw(s, dtype) for s in spec]
    shape = spec["shape"]
    if "values" in spec:
        return torch.tensor(spec["values"], dtype=torch.int32, device=device).reshape(shape)
    if "ints" in spec:
        return torch.randint(0, spec["ints"], shape, dtype=torch.int32, device=device)
    order = spec.get("order")
    stored = [shape[a] for a in order] if order else shape
    kind = torch.float32 if spec.get("f32") else FLOATS[dtype]
    x = torch.empty(stored, dtype=kind, device=device).uniform_(spec.get("low", -1), spec.get("high", 1))
    return x.permute([order.index(i) for i in range(len(order))]) if order else x


def timed(calls):
    """Milliseconds of one call, over calls that take turns."""
    n = len(calls)
    if not GPU:
        for call in calls[:2]:
            call()
        start = time.perf_counter()
        calls[0]()
        once = time.perf_counter() - start
        per = max(1, round(0.06 / max(once, 1e-6)))
        rounds = []
        for _ in range(7):
            start = time.perf_counter()
            for i in range(per):
                calls[i % n]()
            rounds.append((time.perf_counter() - start) / per * 1e3)
        return sorted(rounds)[len(rounds) // 2]

    for _ in range(3):
        for call in calls[:8]:
            call()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    calls[0]()
    end.record()
    torch.cuda.synchronize()
    once = start.elapsed_time(end)
    width = max(n, 1 if once > 0.5 else 8)
    graph = torch.cuda.CUDAGraph()
    try:
        keep = []
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for i in range(width):
                keep.append(calls[i % n]())
        run = graph.replay
    except Exception:  # noqa: BLE001 what cannot be captured is queued call by call
        torch.cuda.synchronize()

        def run():
            for i in range(width):
                calls[i % n]()

    run()
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    first = start.elapsed_time(end)
    repeats = max(1, int(30 / max(first, 1e-3)))
    rounds = []
    for _ in range(5 if first > 100 else 9):
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        rounds.append(start.elapsed_time(end) / repeats / width)
    return sorted(rounds)[len(rounds) // 2]


def both(op, peer, sets, forward, leaves, backward):
    """Times forward(x) and, where asked, the gradients of its leaves alone."""
    with torch.no_grad():
        answers = [{"op": op, "peer": peer, "ms": timed([lambda x=x: forward(x) for x in sets])}]
    if backward:
        calls = []
        for x in sets:
            wanted = [x[name].requires_grad_() for name in leaves]
            y = forward(x)
            dy = torch.randn_like(y)
            calls.append(lambda y=y, w=wanted, dy=dy: torch.autograd.grad(y, w, dy, retain_graph=True))
        answers.append({"op": op + "Backward", "peer": peer, "ms": timed(calls)})
        for x in sets:
            for name in leaves:
                x[name].requires_grad_(False)
    return answers


def attention(case, sets, q, k, v, causal):
    """Scaled dot-product attention by each backend that takes the operands; (B, L, H, D) as (B, H, L, D) views."""
    shaped = [{"q": q(x).transpose(1, 2), "k": k(x).transpose(1, 2), "v": v(x).transpose(1, 2)} for x in sets]
    grouped = shaped[0]["q"].shape[1] != shaped[0]["k"].shape[1]
    kinds = [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention-2", SDPBackend.FLASH_ATTENTION)] if GPU else [("SDPA", SDPBackend.FLASH_ATTENTION)]
    answers = []
    for peer, kind in kinds:
        try:
            with sdpa_kernel([kind]):
                run = lambda x: F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=causal, enable_gqa=grouped)  # noqa: E731
                answers += both(case["op"], peer, shaped, run, ["q", "k", "v"], case["backward"])
        except RuntimeError as error:
            print(f"{peer}: {str(error).splitlines()[0]}", file=sys.stderr)
            if GPU:
                torch.cuda.synchronize()
    return answers


def optimiser(sets):
    calls = []
    for x in sets:
        params = [torch.nn.Parameter(p) for p in x["params"]]
        for p, g in zip(params, x["grads"]):
            p.grad = g
        step = torch.optim.AdamW(params, lr=1e-6, fused=True, capturable=GPU)
        step.step()
        calls.append(step.step)
    return [{"op": "adamW", "peer": "PyTorch, fused", "ms": timed(calls)}]


def rows_of(x):
    return x.reshape(-1, x.shape[-1])


SIMPLE = {
    "linear": (lambda x, a: F.linear(x["x"], x["weight"]), ["x", "weight"]),
    "matmul": (lambda x, a: torch.matmul(x["a"], x["b"]), ["a", "b"]),
    "rmsNorm": (lambda x, a: F.rms_norm(x["x"], (x["x"].shape[-1],), x["weight"], 1e-5), ["x", "weight"]),
    "layerNorm": (lambda x, a: F.layer_norm(x["x"], (x["x"].shape[-1],), x["weight"], x["bias"], 1e-5), ["x", "weight", "bias"]),
    "gatedRmsNorm": (lambda x, a: F.rms_norm(x["x"], (x["x"].shape[-1],), x["weight"], 1e-5) * F.silu(x["gate"]), ["x", "gate", "weight"]),
    "gelu": (lambda x, a: F.gelu(x["x"]), ["x"]),
    "silu": (lambda x, a: F.silu(x["x"]), ["x"]),
    "swiglu": (lambda x, a: F.silu(x["a"]) * x["b"], ["a", "b"]),
    "add": (lambda x, a: x["a"] + x["b"], []),
    "mul": (lambda x, a: x["a"] * x["b"], []),
    "unary": (lambda x, a: torch.exp(x["x"]), []),
    "copy": (lambda x, a: x["x"].clone(memory_format=torch.contiguous_format), []),
    "sum": (lambda x, a: x["x"].sum(a["axis"]), []),
    "gatherRows": (lambda x, a: x["x"].index_select(0, x["index"]), []),
    "embedding": (lambda x, a: F.embedding(x["ids"], x["weight"]), []),
    "patchEmbed": (lambda x, a: F.conv2d(x["x"], x["weight"], x["bias"], stride=x["weight"].shape[-1]), []),
    "crossEntropy": (lambda x, a: F.cross_entropy(rows_of(x["logits"]).float(), x["labels"].long()), []),
    "klDiv": (lambda x, a: F.kl_div(F.log_softmax(x["student"].float(), -1), F.log_softmax(x["teacher"].float(), -1), log_target=True, reduction="batchmean"), []),
    "mse": (lambda x, a: F.mse_loss(x["pred"], x["target"]), []),
    "argmax": (lambda x, a: x["x"].argmax(-1), []),
    "gradNorm": (lambda x, a: torch.nn.utils.get_total_norm(x["grads"]), []),
}


def conv(x, activation):
    y = F.conv1d(x["x"], x["weight"][:, None], x["bias"], padding=x["weight"].shape[1] - 1, groups=x["weight"].shape[0])[..., : x["x"].shape[-1]]
    return F.silu(y) if activation == "silu" else y


def answer(case):
    op, attrs = case["op"], case["attrs"]
    known = op in SIMPLE or op in ("attention", "attentionKvCache", "adamW", "causalConv1d")
    if not known or (op == "unary" and attrs.get("kind") != "exp"):
        return []
    sets = [{name: draw(spec, case["dtype"]) for name, spec in case["inputs"].items()} for _ in range(case["sets"])]
    if op == "attention":
        same = case["inputs"]["q"]["shape"][1] == case["inputs"]["k"]["shape"][1]
        return attention(case, sets, lambda x: x["q"], lambda x: x["k"], lambda x: x["v"], bool(attrs.get("causal")) and same)
    if op == "attentionKvCache":
        return attention(case, sets, lambda x: x["q"], lambda x: x["kCache"], lambda x: x["vCache"], False)
    if op == "adamW":
        return optimiser(sets)
    if op == "causalConv1d":
        return both(op, "PyTorch", sets, lambda x: conv(x, attrs.get("activation")), ["x", "weight", "bias"], case["backward"])
    forward, leaves = SIMPLE[op]
    return both(op, "PyTorch", sets, lambda x: forward(x, attrs), leaves, case["backward"] and leaves)


name = torch.cuda.get_device_name(device) if GPU else "CPU"
print(f"PyTorch {torch.__version__} on {name}", flush=True)
for line in sys.stdin:
    case = json.loads(line)
    try:
        result = answer(case)
    except Exception as error:  # noqa: BLE001 the run goes on without this peer
        print(f"{case['op']}: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        result = []
    if GPU:
        torch.cuda.empty_cache()
    print(json.dumps(result), flush=True)
