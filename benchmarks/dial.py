"""Does the dial do along mini-batches what it says, against the exact one, and what does it cost?

Fixed before its one run. Adam (0.9, 0.999), batch 32, a new order of the batches each epoch, lr 3e-4 and 1e-3; the digits MLP
(56 batches, 1,000 steps, two seeds), a small CNN (15 batches, 600 steps) and a small GPT (6 batches, 300 steps), strength -1
and +1. The exact dial replays every batch at every step:

    F[n](theta; same batches) = Phi(sum_k K1[k] g_{b[n-k]}(theta), sum_k K2[k] g_{b[n-k]}(theta)^2)

* share: of the exact shift of all the data's log-loss from the undialled run, the dial's; 1 is perfect, .85 to 1.15 wanted.
* distance: |theta_dial - theta_exact| / |theta_exact - theta_undialled|; at most .3 wanted from step 300 on.
* placebo: share of the same shift by the permuted, and (added later) the scrambled term at -1; at most .1 wanted.
* effect: what a dialled step does to the gradient's 1-norm beyond F of the same batches, over what the undialled does; 1 + s.
* audited (added later, fixed before its run): `audit_run` along a dialled run, about 18 stops of the MLP in 400 steps and
  of the GPT in 200, two other seeds each: its measured effect against (1 + s) times the undialled optimizer's at the same
  states, the norm of the difference over all stops, over that of the undialled effects; at most .15 wanted.
* slopes (added later): |mean over 20,000 runs of the dial at -1 less that of the literal same-batch twin|, two parameters,
  batches L + x L' with x = +-1, Adam (.9, .95), eps .1, lr = .4/n, n = 64, 128, 256 steps, second moments carried by beta_2:
  its order in lr; 1.5 wanted with the batches' effect on themselves (twin="same").
* cost: processor time of a loop with the dial over one without; 1.05 full batch, 2.1 mini-batch wanted; vectors kept.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import memoryless as ml
from measuring import ratio, rounds
from memoryless.experiments.problems import Problem, cross_entropy, digits_batches, digits_cnn, text_gpt
from memoryless.flat import Layout, flat
from memoryless.live.dial import Dial
from memoryless.loss.batches import cut
from networks import NETWORKS
from output import kept, save, show

BETAS, EPS = (0.9, 0.999), 1e-8


def problem(name: str, seed: int) -> tuple[Problem, int]:
    """The problem and its steps."""
    if name == "MLP":
        return digits_batches(seed), 1000
    made = digits_cnn(seed, 480, torch.float32) if name == "CNN" else text_gpt(seed, count=192, dtype=torch.float32)
    return Problem(made.model, made.criterion, cut(made.batches[0], 32)), 600 if name == "CNN" else 300


LRS = 3e-4, 1e-3
PARTS = "audited", "slopes", "cost"
RUNS = [("MLP", 0), ("MLP", 1), ("CNN", 0), ("GPT", 0)]


class Exact:
    """Every batch's gradient at any theta, and the weights of the past in them."""

    def __init__(self, made: Problem, order: list[int]):
        self.made, self.order = made, order
        self.layout = Layout(dict(made.model.named_parameters()))
        self.names, self.together = self.layout.names, isinstance(made.model, nn.Sequential) and len(made.batches) > 20
        self.w = [np.zeros(len(made.batches)) for _ in BETAS]
        self.n = 0

    def gradients(self, theta: Tensor) -> Tensor:
        """Shape (batches, d)."""
        if not self.together:
            loss = self.made.loss
            return torch.stack([loss.gradient(theta, i) for i in range(len(self.made.batches))])

        def value(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            parts = dict(zip(self.names, self.layout.views(theta), strict=True))
            return nn.functional.cross_entropy(torch.func.functional_call(self.made.model, parts, (x,)), y)

        x, y = (torch.stack(each) for each in zip(*self.made.batches, strict=True))
        return torch.func.vmap(torch.func.grad(value), (None, 0, 0))(theta, x, y)

    def feed(self) -> None:
        """Weights of the step that is about to be taken."""
        for w, beta in zip(self.w, BETAS, strict=True):
            w *= beta
            w[self.order[self.n]] += 1 - beta
        self.n += 1

    def F(self, g: Tensor) -> Tensor:
        """Of the same batches, from the gradients of all at theta."""
        m, v = (torch.from_numpy(w / (1 - b**self.n)).to(g) @ x for w, b, x in zip(self.w, BETAS, (g, g * g), strict=True))
        return m / (v.sqrt() + EPS)


def order(made: Problem, steps: int, seed: int) -> list[int]:
    rng, B = np.random.default_rng(seed), len(made.batches)
    return np.concatenate([rng.permutation(B) for _ in range(steps // B + 1)])[:steps].tolist()


def exact(made: Problem, steps: int, lr: float, s: float, batches: list[int], stops: list[int]) -> dict[int, Tensor]:
    """The path of the exact same-batch dial at the stops."""
    replay, theta, path = Exact(made, batches), made.loss.theta, {}
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for n in range(steps):
        replay.feed()
        g = replay.gradients(theta)
        own = g[batches[n]]
        m, v = BETAS[0] * m + (1 - BETAS[0]) * own, BETAS[1] * v + (1 - BETAS[1]) * own * own
        u = m / (1 - BETAS[0] ** (n + 1)) / ((v / (1 - BETAS[1] ** (n + 1))).sqrt() + EPS)
        theta = theta - lr * (u + s * (u - replay.F(g)))
        if n + 1 in stops:
            path[n + 1] = theta
    return path


def dialled(
    name: str, seed: int, lr: float, s: float, stops: list[int], placebo: str | None = None
) -> tuple[dict[int, Tensor], dict[int, float], Dial]:
    """The path of the dial at the stops, and what its next step does to the 1-norm over what the undialled one does there."""
    made, steps = problem(name, seed)
    batches = order(made, steps, seed)
    optimizer = torch.optim.Adam(made.model.parameters(), lr, BETAS, EPS)
    dial = ml.dial(optimizer, s, model=made.model, criterion=cross_entropy, placebo=placebo)
    replay, loss, path, effects = Exact(made, batches), made.loss, {}, {}
    parameters = list(made.model.parameters())
    for n, b in enumerate(batches):
        replay.feed()
        dial.zero_grad()
        cross_entropy(made.model, made.batches[b]).backward()
        theta = flat(parameters).detach().clone()
        dial.step(batch=made.batches[b])
        if n + 1 in stops:
            after = flat(parameters).detach().clone()
            path[n + 1] = after
            if placebo is None and s:
                states = [optimizer.state[p] for p in parameters]
                m, v = (flat(state[key] for state in states) for key in ("exp_avg", "exp_avg_sq"))
                u = m / (1 - BETAS[0] ** (n + 1)) / ((v / (1 - BETAS[1] ** (n + 1))).sqrt() + EPS)
                F = replay.F(replay.gradients(theta))
                norms = [float(loss.gradient(x).abs().sum()) for x in (after, theta - lr * u, theta - lr * F)]
                effects[n + 1] = (norms[0] - norms[2]) / (norms[1] - norms[2])
    return path, effects, dial


def compared(name: str, seed: int, lr: float) -> dict[str, Any]:
    made, steps = problem(name, seed)
    loss, batches = made.loss, order(made, steps, seed)
    stops = [n for n in (100, 200, 300, 600, 1000) if n <= steps]

    def log_loss(theta: Tensor) -> float:
        return math.log(float(loss(theta)))

    plain, *_ = dialled(name, seed, lr, 0.0, stops)
    placebos = {kind: dialled(name, seed, lr, -1.0, stops, kind)[0] for kind in ("permuted", "scrambled")}
    figures: dict[str, Any] = {"network": name, "seed": seed, "lr": lr, "stops": stops}
    for s in (-1.0, 1.0):
        there = exact(made, steps, lr, s, batches, stops)
        found, effects, dial = dialled(name, seed, lr, s, stops)
        shift = {n: log_loss(there[n]) - log_loss(plain[n]) for n in stops}
        figures[f"{s:+g}"] = {
            "shift": list(shift.values()),
            "share": [(log_loss(found[n]) - log_loss(plain[n])) / shift[n] for n in stops],
            "distance": [float((found[n] - there[n]).norm() / (there[n] - plain[n]).norm()) for n in stops],
            "effect": [effects[n] for n in stops],
            "counts": dial.counts,
            "notes": dial.notes,
            "off": dial.off,
        }
        if s < 0:
            for kind, path in placebos.items():
                figures[kind] = [(log_loss(path[n]) - log_loss(plain[n])) / shift[n] for n in stops]
    return figures


def audited(name: str, lr: float, s: float, steps: int) -> float:
    """Error of the effect that an audit finds along a dialled run, over the undialled effect."""
    found, wanted, own = list[float](), list[float](), list[float]()
    for seed in (20, 21):
        made, _ = problem(name, seed)
        loss, batches, parameters = made.loss, order(made, steps, seed), list(made.model.parameters())
        optimizer = torch.optim.Adam(parameters, lr, BETAS, EPS)
        dial, thetas, updates = (
            ml.dial(optimizer, s, model=made.model, criterion=cross_entropy),
            dict[int, Tensor](),
            dict[int, Tensor](),
        )
        stops = list(range(steps // 8, steps, steps // 10))

        def before(*_: Any, optimizer: Any = optimizer, thetas: Any = thetas, parameters: Any = parameters) -> None:
            state = optimizer.state.get(parameters[0], {})
            thetas[int(state.get("step", 0))] = flat(parameters).detach().clone()

        def after(*_: Any, optimizer: Any = optimizer, updates: Any = updates, parameters: Any = parameters) -> None:
            m, v = (flat(optimizer.state[p][key] for p in parameters) for key in ("exp_avg", "exp_avg_sq"))
            n = int(optimizer.state[parameters[0]]["step"])
            updates[n - 1] = m / (1 - BETAS[0] ** n) / ((v / (1 - BETAS[1] ** n)).sqrt() + EPS)

        dial.register_step_pre_hook(before)
        dial.register_step_post_hook(after)
        run = ml.audit_run(dial, loss, batches, stops=stops, measures=["gradient_1_norm"], compare=[], betas=None)
        for audit in (stop.audit for stop in run.stops):
            theta = thetas[audit.step or 0]
            here, frozen, own_step = (
                float(loss.gradient(theta - lr * F).abs().sum())
                for F in (torch.zeros_like(theta), audit.F, updates[audit.step or 0])
            )
            own.append((own_step - frozen) / here)
            found.append(audit.effects[0].measured or 0.0)
            wanted.append((1 + s) * own[-1])
    return float(np.linalg.norm(np.subtract(found, wanted)) / np.linalg.norm(own))


class Side(nn.Module):
    """Many runs side by side: a row of two parameters for each, which the others' gradients do not reach."""

    H, b = torch.tensor([[1.0, 0.3], [0.3, 0.6]]).double(), torch.tensor([0.2, -0.5]).double()
    H_x, b_x = torch.tensor([[0.35, -0.2], [-0.2, 0.25]]).double(), torch.tensor([0.4, 0.3]).double()

    def __init__(self, runs: int):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -0.7]).double().repeat(runs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of all runs' losses, x of shape (runs, 1)."""
        t = self.theta
        return ((t @ self.H * t / 2 + t * self.b) + x * (t @ self.H_x * t / 2 + t * self.b_x)).sum()

    def gradient(self, theta: Tensor, x: Tensor) -> Tensor:
        """Of each run at theta, shape (runs, 2)."""
        return theta @ self.H + self.b + x * (theta @ self.H_x + self.b_x)


def slopes() -> dict[str, list[float]]:
    """Distances of the means at each n, by what is run."""
    betas, eps, found = (0.9, 0.95), 0.1, {"undialled": list[float](), "fresh": list[float](), "same": list[float]()}
    for n in (64, 128, 256):
        half = 2.0 * torch.randint(2, (10_000, n, 1), generator=torch.Generator().manual_seed(1)).double() - 1
        signs, lr = torch.cat([half, -half]), 0.4 / n
        model = Side(len(signs))
        twin = model.theta.detach().clone()
        for k in range(n):
            past = [model.gradient(twin, signs[:, j]) for j in range(k, -1, -1)]
            m, v = (
                sum(b**age * g**power for age, g in enumerate(past)) * (1 - b) / (1 - b ** (k + 1))
                for power, b in enumerate(betas, 1)
            )
            twin = twin - lr * m / (v**0.5 + eps)
        for name, distances in found.items():
            model = Side(len(signs))
            optimizer = torch.optim.Adam(model.parameters(), lr, betas, eps)
            given: dict[str, Any] = {"second": (betas[1], 0.1), "twin": "fresh" if name == "undialled" else name}
            dial = ml.dial(optimizer, 0.0 if name == "undialled" else -1.0, model=model, criterion=Side.__call__, **given)
            for x in signs.unbind(1):
                dial.zero_grad()
                model(x).backward()
                dial.step(batch=x)
            distances.append(float((model.theta.detach() - twin).mean(0).norm()))
    return found


def cost(name: str) -> dict[str, float]:
    """Ratios of processor time, and the vectors that the dial keeps and the optimizer keeps."""
    made, figures = NETWORKS[name](), {}
    batch = made.batches[0]

    def loop(strength: float | None, mini: bool) -> tuple[Callable[[], None], Any, int]:
        own = NETWORKS[name]()
        optimizer: Any = torch.optim.Adam(own.model.parameters(), 1e-4)
        given = {"model": own.model, "criterion": own.criterion} if mini else {}
        if strength is not None:
            optimizer = ml.dial(optimizer, strength, **given)

        def work() -> None:
            optimizer.zero_grad()
            own.criterion(own.model, batch).backward()
            optimizer.step(**({"batch": batch} if mini and strength is not None else {}))

        return work, optimizer, sum(p.numel() for p in own.model.parameters())

    for mini in (False, True):
        (without, *_), (with_dial, dial, d) = loop(None, mini), loop(-1.0, mini)
        seconds = rounds({"without": without, "with": with_dial}, clock=time.process_time)
        key = "mini-batch" if mini else "full batch"
        figures[key] = ratio(seconds["with"], seconds["without"])
        kept = [x for memory in dial.state_dict()["dial"]["memories"] for x in (memory["before"], *memory["M"])]
        figures[f"{key}, vectors kept"] = sum(x.numel() for x in kept) / d
    return figures


def main() -> None:
    """Of the parts named, or of all; what was found of the others stays in the results."""
    torch.set_num_threads(1)
    lrs = [float(part) for part in sys.argv[1:] if part not in ("audited", "slopes", "cost")] or (
        LRS if not sys.argv[1:] else []
    )
    found = kept("dial") if sys.argv[1:] else {"runs": [], "cost": {}}
    for lr, (name, seed) in itertools.product(lrs, RUNS):
        each = compared(name, seed, lr)
        found["runs"] = [run for run in found["runs"] if (run["network"], run["seed"], run["lr"]) != (name, seed, lr)] + [each]
        told = [(s, key) for s in ("-1", "+1") for key in ("shift", "share", "distance", "effect")]
        rows = [
            [f"{n}", *(each[s][key][k] for s, key in told), each["permuted"][k], each["scrambled"][k]]
            for k, n in enumerate(each["stops"])
        ]
        show(f"{name}, seed {seed}, lr {lr:g}", ["step", *(f"{key} {s}" for s, key in told), "permuted", "scrambled"], rows)
        save("dial", found)
    if "audited" in sys.argv[1:] or not sys.argv[1:]:
        cells = list(itertools.product((("MLP", 400), ("GPT", 200)), LRS, (-1.0, -0.5, 1.0)))
        found["audited"] = [[name, lr, s, audited(name, lr, s, steps)] for (name, steps), lr, s in cells]
        show("Audited", ["network", "lr", "s", "error"], found["audited"])
        save("dial", found)
    if "slopes" in sys.argv[1:] or not sys.argv[1:]:
        found["slopes"] = slopes()
        orders = {name: [math.log2(a / b) for a, b in itertools.pairwise(row)] for name, row in found["slopes"].items()}
        rows = [[name, *row, *orders[name]] for name, row in found["slopes"].items()]
        show("Slopes", ["run", "n = 64", "128", "256", "order", "order"], rows)
        save("dial", found)
    if "cost" in sys.argv[1:] or not sys.argv[1:]:
        costs = found["cost"] = {name: cost(name) for name in NETWORKS}
        show("Cost", ["network", *next(iter(costs.values()))], [[name, *each.values()] for name, each in costs.items()])
        save("dial", found)


if __name__ == "__main__":
    main()
