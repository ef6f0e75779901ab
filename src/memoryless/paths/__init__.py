"""Paths of an optimizer and of the memoryless iterations and flows that stand for it.

It may import `corrections`, `methods`, `loss`, `render` and the ground floor. In reading order:

* `trajectory`: theta[0], ..., theta[n] of the optimizer itself or of an iteration with F + M, side by side.
* `flow`: the differential equation that the optimizer follows, and its solution.
* `accuracy`: with which power of lr an iteration approaches the optimizer.
"""
