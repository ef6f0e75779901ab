"""Peak memory of audits, in vectors of theta: a wide MLP on few images, AdamW, so that the vectors are all that counts."""

import torch

import memoryless as ml
from measuring import peak
from memoryless.experiments import problems
from output import save, show

STEPS = 5
WORK = {
    "one gradient": lambda loss, optimizer: loss.gradient(loss.theta),
    "audit, gradient 1-norm": lambda loss, optimizer: ml.audit(optimizer, loss, measures=["gradient_1_norm"]),
    "audit, three measures": lambda loss, optimizer: ml.audit(optimizer, loss),
    "map from a checkpoint, 400 pairs": lambda loss, optimizer: ml.beta_map(
        optimizer, loss, order="state", measures=["gradient_1_norm"], check=False
    ),
    "audit_run, alone": lambda loss, optimizer: ml.audit_run(optimizer, loss, 2, stops=[1], compare=(), betas=None),
    "audit_run, six others, 400 pairs": lambda loss, optimizer: ml.audit_run(optimizer, loss, 2, stops=[1]),
}


def main() -> None:
    found, d = {}, 0
    for name, work in WORK.items():
        problem = problems.digits_mlp(width=4000, count=20)
        optimizer = torch.optim.AdamW(problem.model.parameters())
        for _ in range(STEPS):
            problem.loss.layout.set_gradients(problem.loss.gradient(problem.loss.theta))
            optimizer.step()
        d = problem.loss.layout.d
        found[name] = peak(lambda work=work, problem=problem, optimizer=optimizer: work(problem.loss, optimizer)) / (8 * d)
    show(f"Peak in vectors of theta, d = {d:,}", ("what", "vectors"), [(name, f"{most:.0f}") for name, most in found.items()])
    save("memory", found)


if __name__ == "__main__":
    main()
