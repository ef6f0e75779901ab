"""Cost of a correction at the size of GPT-2: 49M parameters from a config, float32, one thread, CPU time, in gradients.

    python benchmarks/large.py

Everything is timed side by side (`measuring.rounds`) in `ROUNDS` rounds; the unit is the cheapest way to the gradient. The
derivative guard, which runs once per Loss, is what a new Loss's first product costs beyond a later one.
"""

import time
import warnings
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import memoryless as ml
from measuring import peak, ratio, rounds
from output import save, show

ROUNDS = 3
STEP = 1000
SAMPLES, CONTEXT = 8, 64


def model() -> nn.Module:
    """Width 512, 8 layers of 8 heads, GPT-2's vocabulary."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=512, n_layer=8, n_head=8, n_positions=128, use_cache=False)).eval()


def criterion(model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    return model(input_ids=batch["input_ids"], labels=batch["input_ids"])


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    network = model()
    batches = [{"input_ids": torch.randint(50257, (SAMPLES, CONTEXT))}]
    exact, differences = (ml.Loss(network, criterion, batches, curvature=way) for way in ("exact", "difference"))
    theta, method = exact.theta, ml.AdamW()
    v = torch.randn_like(theta)

    def backward() -> None:
        network.zero_grad()
        criterion(network, batches[0]).loss.backward()

    def guarded() -> None:
        ml.Loss(network, criterion, batches).curvature(theta, v)

    contestants = {"backward() on the model": backward, "Loss.gradient": lambda: exact.gradient(theta)}
    ways = list(contestants)
    for name, loss in (("", exact), (", difference", differences)):
        for order in ("first", "resummed"):

            def corrected(loss: ml.Loss = loss, order: Any = order) -> Any:
                return ml.correction(method, loss, theta, step=STEP, order=order)

            contestants[order + name] = corrected
    contestants |= {"HVP": lambda: exact.curvature(theta, v), "HVP of a new Loss": guarded}
    seconds = rounds(contestants, ROUNDS, time.process_time)
    unit = min(ways, key=lambda way: median(seconds[way]))
    cost = {name: ratio(seconds[name], seconds[unit]) for name in contestants}
    figures: dict[str, Any] = {
        "parameters": theta.numel(),
        "unit seconds": median(seconds[unit]),
        "gradients": cost,
        "guard": cost["HVP of a new Loss"] - cost["HVP"],
    }
    gradient = min(peak(contestants[way]) for way in ways)
    figures["peak memory in a gradient's"] = {order: peak(contestants[order]) / gradient for order in ("first", "resummed")}
    rows = [[name, f"{x:.2f}"] for name, x in (cost | {"guard": figures["guard"]}).items()]
    rows += [[f"memory, {name}", f"{x:.2f}"] for name, x in figures["peak memory in a gradient's"].items()]
    show(f"{theta.numel():,} parameters, in gradients", ["", "ratio"], rows)
    save("large", figures)


if __name__ == "__main__":
    main()
