"""Problems that come with the package, the paper's figures, the theorem put to the test.

It may import every room but `report` and `cli`. In reading order:

* `problems`: images of digits and prose that every installation has, and small networks for them.
* `images`: handwritten digits from scikit-learn, the Hugging Face hub or a folder.
* `fig1`: the paper's Fig. 1: how far the memoryless iterations stray from the optimizer.
* `figure`: what every other figure is made of: settings, runs that are kept, claims with the test that judges them.
* `training`: full-batch training of many small networks at once, or of one large network.
* `along_batches`: training of many small networks at once along mini-batches, each in its own order.
* `beta_2`: AdamW against beta_2 with Lion beside it, as Fig. 2a to 4 show them.
* `fig2a`: Fig. 2a and 3: generalization of images' networks at equal training loss against beta_2.
* `fig2b`: Fig. 2b and 4: perplexity of language models against beta_2.
* `dial_study`: memory's effect alone turned, all else held: is it memory that causes it?
* `dial_arms`: what that study runs: networks, data, memory dialled full batch and along mini-batches.
* `ranking_study`: does one run's map of memory's effect rank other betas as their own finished runs do?
* `ranking_runs`: what that study runs: one run's map, and every pair by itself.
* `text`: words of Python's documentation, or of WikiText-2.
* `fig5`: Fig. 5 and 6: how sharp Adam lets the loss become, against the threshold of stability.
* `batch_sharpness`: where momentum lets the sharpness settle, a claim of another paper.
* `models`: the networks of the paper's experiments (a room of its own).
* `cifar`: CIFAR-10, from the hub or a folder.
* `theorem`: Theorem 3.2 on one method and one problem.
* `script`: what a user's script sets up.
* `store`: lines of JSON that survive a kill, and files that are there whole or not at all; no torch.
* `processes`: processes of their own for the pieces of long work.
* `sweep`: any grid of training runs (a room of its own).
* `atlas`: every optimizer of the known libraries through the same machine (a room of its own).
"""
