"""The correction averaged over the random order of mini-batches.

It may import what `corrections` may, and the files of that room. In reading order:

* `expected`: the door, `expected_correction(method, loss, ...)`: the means of F and M, with standard errors.
* `closed_form`: the mean exactly, for methods linear in the gradient.
* `random_lag`: one sample of M from a single Hessian-vector product, for all others.
* `estimate`: means of samples and their standard errors, also where samples depend on each other.
"""
