"""L alone: a loss as a function of the flat vector theta, its gradient and curvature, and the measures S of it.

It may import `render` and the ground floor (the files beside the rooms); it knows no optimizer. In reading order:

* `loss`: the public `Loss`: a model, a criterion and batches as L(theta), its gradient, Hessian-vector product, linearization.
* `one_batch`: L of one batch, its gradient and product, with every check of what a model returns.
* `products`: Hessian-vector products over batches, exact or by differences.
* `batches`: a source that gives the same batches again and again; tensors wherever they lie in a batch.
* `many_points`: gradients at many theta at once, for networks so small that calls cost more than arithmetic.
* `plainly`: compiled models and checkpoints as the plain functions that they are.
* `scope`: a model with other parameters in its place, and the loss that its output holds.
* `double_backward`: second derivatives of convolution, attention and GELU from fast kernels, for `loss`.
* `guard`: whether the Hessian-vector product is the derivative of the gradient; asked once per loss.
* `point`: all that is known of L at one theta, found once: what other rooms take in place of (loss, theta, step).
* `measures`: what memory acts on, S(theta) and its gradient, by name.
* `top_eigenvalue`: the largest eigenvalue of H and of P^-1 H along a run, each search begun where the last one ended.
* `noise_scale`: how noisy mini-batch gradients are, `gradient_noise`.
"""
