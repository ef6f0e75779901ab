"""Along a run: the audit of many steps, full batch or mini-batches.

It may import `audits` and every room below it. In reading order:

* `loop`: a torch optimizer's steps on the loss's own parameters, looked at before each; the run stays what it was.
* `run`: `audit_run(optimizer, loss, ...)`: audits at some of the steps, other methods' memories on its gradients, beta maps.
* `branches`: shadows checked by some real steps of their methods.
* `anchors`: further pairs of betas that run beside, off which a map is read where the run does not settle it.
* `lags`: the frozen memory of a mini-batch run, exactly or from a few random lags.
* `batch_sizes`: `audit_batch_sizes(optimizer, loss, sizes, ...)`: which betas at which batch size.
* `advice`: the answer to that in words, with its uncertainty.
"""
