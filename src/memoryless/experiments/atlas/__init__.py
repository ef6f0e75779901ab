"""Every optimizer of the known libraries through the same machine, and what its memory does to the loss.

It may import what `experiments` may, and the files of that room. In reading order:

* `subjects`: which optimizers, and what each must be given besides parameters: the file to edit for a new one.
* `ways`: first order and resummed in two ways that share no step, and whether they agree.
* `rows`: a row of the atlas: one optimizer on each problem.
* `pool`: all rows, each optimizer in a process of its own, with a time limit.
"""
