"""Measured beside predicted, at one theta.

It may import `formulas`, `paths`, `corrections`, `methods`, `loss`, `render` and the ground floor. In reading order:

* `audit`: the door, `audit(optimizer, loss, ...)`: what memory does to the next update, measured and predicted.
* `effect`: what an effect does to the measures, how far it can be trusted, and both in words.
* `compare`: several optimizers on one loss, each audited where its own run arrives.
* `beta_map`: the effect over a grid of (beta_1, beta_2), at the price of about one correction.
* `state_map`: the same from a live optimizer's own buffers, and how far each pair is known.
* `maps`: the door to both, `beta_map(method, loss, ...)`.
* `ahead`: `look_ahead(method, loss, ...)`: the effect some real steps on, from memory started at what theta tells of it.
* `grid`: one method at every pair of betas, and sums over theta for all pairs at once.
* `order_map`: the same predicted along one order of mini-batches, first order and resummed from the same products.
* `shadow`: memories of methods that do not run, fed with the gradients of the one that does.
* `deviation`: whether that run can speak for them: how far their own updates would have left its path.
"""
