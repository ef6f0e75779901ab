"""Was that step right? A step is recorded, taken again as documented in float64, and, where it is off, with each likely cause.

May import what `live` may. In reading order:

* `record`: a step as it was taken.
* `reference`: the documented step in float64, and what rounding can explain.
* `causes`: steps with a cause put in.
* `gradients`: the gradient that the step should have got.
* `history`: what its state and precision say.
* `shares`: gradient, memory and decay in it.
* `step_check`: the answer.
* `judging`: from a record to the answer's parts.
* `checking`: `check_step(optimizer, ...)`, around a step of a loop.
* `recording`: `recorded(optimizer)`, a step that is checked later.
"""
