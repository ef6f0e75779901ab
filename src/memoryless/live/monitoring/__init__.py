"""In a training run as it happens: the monitor.

In reading order:

* `monitor`: `Monitor(model, criterion, optimizer, ...)`, the door: a user's words, and hooks of the optimizer's step;
* `subjects`: whose memories are measured,
* `schedule`: when,
* `account`: what that takes of the wall time,
* `watching`: what is kept of the run between stops,
* `ranks`: the processes of a run, and what they agree on,
* `shards`: parameters that are spread over them,
* `draws`: which past steps to replay, with which weights,
* `replay`: those steps, taken again at the present theta,
* `past_weights`: the weights of past steps in the memory that the optimizer holds, by the hyperparameters of each one's time,
* `sample`: the coordinates that maps are made of,
* `whole`: the live pair's sums over all coordinates,
* `frozen`: the frozen memory from the replayed steps, with its standard error,
* `checks`: the run's steps judged, and their gradients at a stop,
* `measuring`: what is measured at a stop,
* `log`: where it is written to.
"""
