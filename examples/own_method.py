"""A method of your own is data: momentum variables and a readout. Everything else follows from them."""

import memoryless as ml
from memoryless.experiments.problems import digits_mlp

BETA_1, BETA_2, EPS = 0.9, 0.99, 1e-8

# Adam with the average of |g| in the denominator in place of the root of the average of g^2.
method = ml.Method(
    lr=1e-3,
    variables=(
        ml.Momentum(BETA_1, weight=lambda n: (1 - BETA_1) / (1 - BETA_1 ** (n + 1.0))),
        ml.Momentum(BETA_2, lambda g, theta: g.abs(), weight=lambda n: (1 - BETA_2) / (1 - BETA_2 ** (n + 1.0))),
    ),
    phi=lambda f, m, theta: m[0] / (m[1] + EPS),
    name="adam_1",
)

loss = digits_mlp().loss
for order in ("first", "resummed"):
    c = ml.correction(method, loss, step=100, order=order)
    print(f"{order}: |M| / |F| = {c.M.norm() / c.F.norm():.3g}, outside the radius {c.outside:.0%}")
print(ml.audit(method, loss, step=100).verdict)

# The update itself comes from the same definition.
theta, state = loss.theta, method.init(loss.theta)
for _ in range(100):
    state, F = method.update(state, loss.gradient(theta), theta)
    theta = theta - method.lr * F
print(f"loss after 100 steps: {loss(theta):.3f}")
