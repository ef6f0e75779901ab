"""Memory is a change of the loss: plain gradient descent on heavy ball's modified loss lands where heavy ball lands."""

import math

import torch

import memoryless as ml

torch.manual_seed(0)
BETA, START, END = 0.5, 0.5, 1.5
A = torch.randn(20, 8, dtype=torch.float64)
target = torch.randn(20, dtype=torch.float64)


def L(theta: torch.Tensor) -> torch.Tensor:
    return torch.log1p((A @ theta - target) ** 2).mean()


def heavy_ball_loss(theta: torch.Tensor, lr: float) -> torch.Tensor:
    """L + lr beta / (2 (1 - beta)^2) |grad L|^2, written as a plain loss."""
    gradient = torch.func.grad(L)(theta)
    return L(theta) + lr * BETA / (2 * (1 - BETA) ** 2) * gradient @ gradient


loss = ml.Loss.of(L, torch.zeros(8, dtype=torch.float64))
print(ml.derive("heavy_ball").modified_loss)
print("lr        gap to heavy ball: descent on L, on the modified loss")
gaps = []
for lr in (0.02, 0.01, 0.005, 0.0025):
    start, end = round(START / lr), round(END / lr)
    path = ml.trajectory(ml.HeavyBall(lr, BETA), loss, end)
    # Start once the memory has settled: the modified loss is the steady state's.
    plain = modified = path[start]
    for _ in range(start, end):
        plain = plain - lr / (1 - BETA) * torch.func.grad(L)(plain)
        modified = modified - lr / (1 - BETA) * torch.func.grad(heavy_ball_loss)(modified, lr)
    gaps.append([float((x - path[-1]).abs().max()) for x in (plain, modified)])
    print(f"{lr:<9} {gaps[-1][0]:.2e}                      {gaps[-1][1]:.2e}")
orders = [math.log2(before / after) for before, after in zip(gaps[-2], gaps[-1], strict=True)]
print(f"order     {orders[0]:.2f}                          {orders[1]:.2f}")
