"""Trains the model: a float stage, then quantization-aware training with the learning rate going to zero.

    python train.py --out RUN                       both stages, on a GPU if there is one
    python train.py --out RUN --twin                the float twin: the same second stage without quantization
    python train.py --out RUN --start ..            the second stage alone, from an exported checkpoint (also with --twin)
    python train.py --out RUN --evaluate FILE.pt    exact match on 2,000 fresh held-out conversations, thoughts included

RUN receives last.pt (resumed from when it is there), float.pt (end of the first stage), final.pt or twin.pt, and log.txt.
"""

import argparse
import json
import math
import os
import random
import time
from multiprocessing import Pool
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")  # all shapes of all batches: a product is compiled for each

import torch
import torch.nn.functional as F

from export import read
from generate import draw, render
from model import Config, Linear, Model
from tokenizer import load_tokenizer

GROUPS = 3  # a step takes one small batch each of short, middle and long conversations
CHUNK = 6144


def chunk(job):
    """The conversations of chunk `index`: lists of (prompt ids, answer ids)."""
    seed, index = job
    rng = random.Random(f"{seed}/{index}")
    pairs = [render(draw(rng)) for _ in range(CHUNK)]
    tok = load_tokenizer()
    prompts = tok.encode_batch([p for p, _ in pairs])
    answers = tok.encode_batch([a for _, a in pairs], add_special_tokens=False)
    return [(p.ids, a.ids) for p, a in zip(prompts, answers) if len(p.ids) + len(a.ids) <= 300]


def rounded_up(n, to):
    return -(-n // to) * to


def collate(rows, t=None, n=None):
    """ids [B, T], positions whose logits are wanted [B, A], the tokens they must give [B, A] (-100 where padded)."""
    t = t or max(len(p) + len(a) for p, a in rows)
    n = n or max(len(a) for _, a in rows)
    ids, at, want = torch.zeros(len(rows), t, dtype=torch.long), torch.zeros(len(rows), n, dtype=torch.long), torch.full((len(rows), n), -100)
    for i, (p, a) in enumerate(rows):
        ids[i, :len(p) + len(a)] = torch.tensor(p + a)
        at[i, :len(a)] = torch.arange(len(p) - 1, len(p) + len(a) - 1)
        want[i, :len(a)] = torch.tensor(a)
    return ids, at, want


def batches_of(rows, tokens):
    """Batches of at most `tokens` places, the shortest first, in few shapes: a product of a shape that was not met before costs oneDNN
    several times its own time. Conversations that do not fill a batch of their length join the next longer ones."""
    lengths, out, rest = {}, [], []
    for p, a in rows:
        lengths.setdefault(rounded_up(len(p) + len(a), 16), []).append((p, a))
    for t in sorted(lengths):
        size = max(1, tokens // t)
        here = sorted(rest + lengths[t], key=lambda r: len(r[1]))
        full = len(here) // size * size
        out += [(here[i:i + size], t) for i in range(0, full, size)]
        rest = here[full:]
    return [collate(b, t, rounded_up(max(len(a) for _, a in b), 8)) for b, t in out]


def steps_of(rows, tokens, rng):
    """The steps of a chunk: GROUPS batches each, of different lengths."""
    small = batches_of(rows, tokens // GROUPS)
    size = len(small) // GROUPS
    groups = [small[i * size:(i + 1) * size] for i in range(GROUPS)]
    for g in groups:
        rng.shuffle(g)
    return [list(step) for step in zip(*groups)]


def stream(seed, first, tokens, workers):
    """(chunk index, steps) from chunk `first` on."""
    jobs = ((seed, i) for i in range(first, 10 ** 6))
    if workers:
        with Pool(workers) as pool:
            window = [pool.apply_async(chunk, (next(jobs),)) for _ in range(2 * workers)]
            for i in range(first, 10 ** 6):
                rows = window.pop(0).get()
                window.append(pool.apply_async(chunk, (next(jobs),)))
                yield i, steps_of(rows, tokens, random.Random(i))
    for job in jobs:
        yield job[1], steps_of(chunk(job), tokens, random.Random(job[1]))


class Muon:
    """Momentum whose step is the nearest orthogonal matrix (five Newton-Schulz iterations), for the projections."""

    def __init__(self, params, momentum=0.95):
        self.params, self.momentum = list(params), momentum
        self.state = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self, lr):
        shapes = {}
        for p, m in zip(self.params, self.state):
            if p.grad is None:
                continue
            m.mul_(self.momentum).add_(p.grad)
            g = p.grad.add(m, alpha=self.momentum)
            tall = g.shape[0] > g.shape[1]
            shapes.setdefault((min(g.shape), max(g.shape)), []).append((p, g.T if tall else g, tall))
        for group in shapes.values():
            x = torch.stack([g for _, g, _ in group])
            x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)).bfloat16()
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            for (p, _, tall), u in zip(group, x):
                p.add_((u.T if tall else u).float(), alpha=-lr * 0.2 * math.sqrt(max(p.shape)))


def optimizers(model, device):
    matrices = [m.weight for n, m in model.named_modules() if isinstance(m, Linear) and n != "head"] + [model.ple_project]
    chosen = {id(p) for p in matrices}
    scales = [p for n, p in model.named_parameters() if n.endswith("log_scale")]
    chosen |= {id(p) for p in scales}
    rest = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    adam = torch.optim.Adam([{"params": rest, "rate": 1.0}, {"params": scales, "rate": 0.5}], lr=1.0, betas=(0.9, 0.98), eps=1e-10, fused=True)
    return Muon(matrices), adam


def loss_of(model, batch, device, total):
    ids, at, want = (x.to(device, non_blocking=True) for x in batch)
    return F.cross_entropy(model(ids, at).flatten(0, 1), want.flatten(), ignore_index=-100, reduction="sum") / total


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def evaluate(model, rows, device, tokens=6000):
    """Share of answers that greedy decoding reproduces exactly: the argmax is right at every place of the answer."""
    hits = {}
    order = sorted(rows, key=lambda r: len(r[1]) + len(r[2]))
    while order:
        part, longest = [], 0
        while order and (len(part) + 1) * max(longest, len(order[0][1]) + len(order[0][2])) <= tokens:
            longest = max(longest, len(order[0][1]) + len(order[0][2]))
            part.append(order.pop(0))
        ids, at, want = (x.to(device) for x in collate([(p, a) for _, p, a in part]))
        right = ((model(ids, at).argmax(-1) == want) | (want < 0)).all(1).tolist()
        for (kind, _, _), ok in zip(part, right):
            hits.setdefault(kind, []).append(ok)
    return {k: sum(v) / len(v) for k, v in sorted(hits.items())}


@torch.compiler.set_stance("force_eager")
def calibrate(model, steps, device, **how):
    model.calibrate([tuple(x.to(device) for x in b[:2]) for s in steps[:6] for b in s], **how)


def held_rows(seed, count):
    """Fresh held-out conversations (not those of the cases' file), to watch training."""
    rng, tok = random.Random(f"watch/{seed}"), load_tokenizer()
    rows = []
    for _ in range(count):
        c = draw(rng, held=True)
        p, a = render(c)
        rows.append((c["kind"], tok.encode(p).ids, tok.encode(a, add_special_tokens=False).ids))
    return rows


def rate(step, a, total):
    """Warm up, stay, and go down over the last part."""
    fall = max(0, step - (1 - a.fall) * total) / max(1, a.fall * total)
    return a.rate * min(1.0, (step + 1) / a.warmup) * max(0.0, 1 - fall)


def train(a):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # on a GPU: TF32, exact for 8-bit codes
    torch.manual_seed(a.seed)
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.start:
        a.float_steps = 0
    a.out.mkdir(parents=True, exist_ok=True)
    model = Model(Config(**json.loads(a.config))).to(device)
    muon, adam = optimizers(model, device)
    step, first, spent = 0, 0, 0.0
    last = a.out / ("last-twin.pt" if a.twin else "last.pt")
    start = a.out / "float.pt" if a.twin and not a.start and not last.exists() else last
    if start.exists():
        state = torch.load(start, map_location=device)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.state = [m.to(device) for m in state["muon"]]
        step, first, spent = state["step"], state["chunk"] + 1, state["spent"]
        model.quantize((step > a.float_steps or a.start is not None) and not a.twin)
    elif a.start:
        read(model, a.start)
        model.quantize(not a.twin)
    total = a.float_steps + a.quant_steps
    products = getattr(torch, a.products)
    if a.compile:
        torch._dynamo.config.recompile_limit = 64  # one for each kind of layer, with and without roundings
        for layer in model.layers:
            layer.compile(dynamic=True)
        model.ple, model.logits = (torch.compile(f, dynamic=True) for f in (model.ple, model.logits))
    watch, log = held_rows(0, 400), open(a.out / "log.txt", "a")

    def say(text):
        print(text, flush=True)
        log.write(text + "\n")
        log.flush()

    def save(path, index):
        torch.save(dict(model=model.state_dict(), adam=adam.state_dict(), muon=muon.state, step=step, chunk=index, spent=spent + time.time() - began, config=a.config), path)

    say(f"{sum(p.numel() for p in model.parameters())} parameters, {device}, from step {step} of {total}, seed {a.seed}")
    began, seen, mark, losses = time.time(), 0, time.time(), []
    for index, steps in stream(a.seed, first, a.tokens, a.workers):
        for batch in steps:
            if step == a.float_steps and not a.twin and not a.start:
                save(a.out / "float.pt", index)
                say(f"step {step} float: held-out {fmt(evaluate(model, watch, device))}")
                calibrate(model, steps, device)
                say(f"step {step} quantized, untrained: held-out {fmt(evaluate(model, watch, device))}")
            if step in (a.float_steps + 200, a.float_steps + a.quant_steps // 2) and not a.twin and not a.start:
                # What the rounded weights make of the activations is not what the float weights made of them.
                calibrate(model, steps, device, weights=False)
            r = rate(step, a, total)
            wanted = sum((b[2] >= 0).sum().item() for b in batch)
            model.hold_weights(products)
            losses.append(0.0)
            for b in batch:
                loss = loss_of(model, b, device, wanted)
                loss.backward()
                losses[-1] += loss.item()
            model.release_weights()
            for group in adam.param_groups:
                group["lr"] = a.lr * r * group["rate"]
            torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)
            muon.step(a.muon_lr * r)
            adam.step()
            model.zero_grad(set_to_none=True)
            step, seen = step + 1, seen + sum(b[0].numel() for b in batch)
            if step % a.report == 0:
                dt = time.time() - mark
                say(f"step {step} loss {sum(losses) / a.report:.4f} lr {r:.3f} {seen / dt:.0f} tokens/s {dt / a.report:.2f} s/step, {spent + time.time() - began:.0f} s")
                losses, seen, mark = [], 0, time.time()
            if step % a.check == 0:
                say(f"step {step}: held-out {fmt(evaluate(model, watch, device))}")
                mark = time.time()
            if step >= total:
                save(a.out / ("twin.pt" if a.twin else "final.pt"), index)
                say(f"step {step} end: held-out {fmt(evaluate(model, watch, device))} after {spent + time.time() - began:.0f} s")
                return
        save(last, index)


def fmt(result):
    return " ".join(f"{k} {v:.3f}" for k, v in result.items())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--config", default="{}", help="JSON: fields of model.Config")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--float-steps", type=int, default=6500)
    ap.add_argument("--quant-steps", type=int, default=12500)
    ap.add_argument("--warmup", type=int, default=50)
    ap.add_argument("--tokens", type=int, default=3072, help="per step")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--muon-lr", type=float, default=8e-3)
    ap.add_argument("--workers", type=int, default=0, help="processes that draw conversations")
    ap.add_argument("--threads", type=int, default=0, help="of torch, on a CPU")
    ap.add_argument("--start", type=Path, help="an exported checkpoint's folder to go on from: the second stage alone, its activation steps as they are")
    ap.add_argument("--rate", type=float, default=1.0, help="factor on both learning rates")
    ap.add_argument("--fall", type=float, default=0.75, help="part of all steps, at their end, in which the rate goes down to zero")
    ap.add_argument("--products", choices=("bfloat16", "float32"), default="bfloat16", help="operands of products while training; evaluation is always in float32")
    ap.add_argument("--compile", action="store_true", help="compile the layers (needs a C++ compiler and a few minutes at the start of each stage)")
    ap.add_argument("--report", type=int, default=20)
    ap.add_argument("--check", type=int, default=200)
    ap.add_argument("--twin", action="store_true")
    ap.add_argument("--evaluate", type=Path)
    a = ap.parse_args()
    if a.evaluate:
        state = torch.load(a.evaluate, map_location="cpu")
        model = Model(Config(**json.loads(state["config"])))
        model.load_state_dict(state["model"])
        model.quantize(a.evaluate.name not in ("float.pt", "twin.pt"))
        print(fmt(evaluate(model, held_rows(1, 2000), "cpu")))
        return
    train(a)


if __name__ == "__main__":
    main()
