"""Along a run: the audit of many steps, full batch or mini-batches.

It may import `audits` and every room below it. In reading order:

* `loop`: a torch optimizer's steps on the loss's own parameters, looked at before each; the run stays what it was.
* `run`: `audit_run(optimizer, loss, ...)`: audits at some of the steps, other methods' memories on its gradients, beta maps.
* `lags`: the frozen memory of a mini-batch run, exactly or from a few random lags.
* `batch_sizes`: `audit_batch_sizes(optimizer, loss, sizes, ...)`: which betas at which batch size.
* `advice`: the answer to that in words, with its uncertainty.
* `monitor`: `Monitor(model, criterion, optimizer, ...)`: in a training loop, by hooks of the optimizer's step; its parts are
* `schedule`: when to measure,
* `draws`: which past steps to replay, with which weights,
* `replay`: those steps, taken again at the present theta,
* `buffers`: the memory that the optimizer holds, with the hyperparameters of each step's own time,
* `sample`: the coordinates that maps are made of,
* `whole`: the live pair's sums over all coordinates,
* `frozen`: the frozen memory from the replayed steps, with its standard error,
* `stop`: what is measured at a stop,
* `log`: where it is written to.
"""
