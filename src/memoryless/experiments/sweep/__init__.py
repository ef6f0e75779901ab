"""Any grid of training runs, worked on wherever there are cores, so that nothing done is done again.

It may import what `experiments` may, and the files of that room. In reading order:

* `grid`: a file of TOML, whose lists are axes, and its runs; no torch.
* `problem`: what a run trains on, the batch of each step, what is measured.
* `training`: one run, which goes on bit for bit where it was killed.
* `versions`: of which code a result is.
* `results`: the store, and what it has of a grid; no torch.
* `engines`: processes of this machine, or tasks of a Ray cluster.
* `driver`: what is left of a grid, each run once.
* `planning`: what it will take, before it starts.
"""
