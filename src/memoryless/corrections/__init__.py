"""Where a loss and an optimizer meet, at one theta: F, and what memory adds to it.

It may import `methods`, `loss`, `render` and the ground floor. In reading order:

* `correction`: the door, `correction(method, loss, ...)`: F and M to first order, resummed, along a path, or to any order R.
* `arguments`: those that public functions share, looked at before any work.
* `expansion`: the linearization behind the first two, one form in which catalogue methods and black boxes both answer.
* `history`: how far the gradients that a catalogue method remembers lag behind the present.
* `averages`: the averages of past updates that say so, for any number of steps without computing each.
* `sequences`: orders of mini-batches, and what an optimizer does along one with theta frozen.
* `unrolled`: how a black box answers a lagging history, step by step.
* `steady`: how it answers once its memory has come to rest.
* `path`: the way back that the optimizer came, followed by a few gradients, and its memory of them.
* `curves`, `recalled`: what a live optimizer's buffers tell of the memories that other betas would have kept.
* `relaxation`: any order R, from gradients alone.
* `expected`: the mean of M over the random order of mini-batches (a room of its own).
"""
