"""What does a full-batch gradient by accumulation over physical batches cost, over a plain loop of backward passes over them?

Eight physical batches; at most 1.05 wanted. Figures at the paper's scale train with `Networks`, all else asks `Loss`.
"""

import time

import torch

import memoryless as ml
from measuring import ratio, rounds
from memoryless.experiments.training import Networks
from memoryless.loss.batches import cut
from networks import NETWORKS
from output import save, show

PARTS = 8


def costs(name: str) -> dict[str, float]:
    """Processor time of each way over the plain loop's."""
    problem = NETWORKS[name]()
    model, batch = problem.model, problem.batches[0]
    batches = cut(batch, len(batch[0]) // PARTS)
    loss = ml.Loss(model, problem.criterion, batches)
    networks = Networks(model, problem.criterion, batches, together=False)
    theta = loss.theta

    def plain() -> None:
        model.zero_grad()
        for each in batches:
            (problem.criterion(model, each) / len(batches)).backward()

    ways = {
        "plain loop": plain,
        "Loss.gradient": lambda: loss.gradient(theta),
        "Loss.backward": loss.backward,
        "Networks": lambda: networks.at(theta[None]),
    }
    seconds = rounds(ways, clock=time.process_time)
    return {way: ratio(seconds[way], seconds["plain loop"]) for way in ways}


def main() -> None:
    torch.set_num_threads(1)
    figures = {name: costs(name) for name in NETWORKS}
    ways = list(next(iter(figures.values())))
    show(
        "A full-batch gradient over that of a plain loop",
        ["", *ways],
        [[name, *each.values()] for name, each in figures.items()],
    )
    save("accumulation", figures)


if __name__ == "__main__":
    main()
