"""Along a run: the audit of many steps, full batch or mini-batches.

It may import `audits` and every room below it. In reading order:

* `followed`: a scheduler that is stepped along the run, and what it gave each step.
* `loop`: a torch optimizer's steps on the loss's own parameters, looked at before each; the run stays what it was.
* `lags`: the frozen memory of a mini-batch run, exactly or from a few random lags.
* `stop`: what is found at one step.
* `watches`: how it is found, full batch and along mini-batches.
* `branches`: shadows checked by some real steps of their methods.
* `anchors`: further pairs of betas that run beside, off which a map is read where the run does not settle it.
* `beyond`: for which shadows a run speaks, of the two.
* `run`: `audit_run(optimizer, loss, ...)`: audits at some of the steps, other methods' memories on its gradients, beta maps.
* `batch_sizes`: `audit_batch_sizes(optimizer, loss, sizes, ...)`: which betas at which batch size.
* `advice`: the answer to that in words, with its uncertainty.
* `monitoring`: `Monitor(model, criterion, optimizer, ...)`: in a training loop, by hooks of the optimizer's step.
* `dial`: `dial(optimizer, strength)`: memory's effect cancelled, scaled or doubled, all else equal; its parts are
* `transport`: the memory of past batches carried along to the present theta,
* `own_effect`: what a batch does to the gradients of those that follow it,
* `chunks`: coordinates in pieces that suit the machine,
* `again`: a step's gradient at other points,
* `memories`: which tensors have the same past,
* `repeated`: the frozen update of an optimizer without a formula.
* `check`: `check_step(optimizer, ...)`: was that step the documented one, and if not, why.
"""
