"""The command line reads options, calls the library, shows what came. It may import any room; no room imports it.

Torch and whatever needs it are imported inside `run`, so that --help does not wait. In reading order:

* `main`: the commands, and how an error becomes one line and an exit code.
* `options`: what commands share, checked before any work is done, and progress; no torch.
* `files`: what a command writes; no torch.
* `answer`: standard output.
* `setup`: what a command works on: problem or script, and optimizer.
* `checkpoint`: what people save.

Then one file per command, with the command's name:

* `audit`: what memory does along a run.
* `check`: was each step the documented one, and if not, why.
* `compare`: the same loss under several optimizers.
* `betas`: which betas at which batch size.
* `map`: which betas, by a checkpoint's own buffers.
* `derive`: the correction as a formula.
* `verify`: the theorem on any optimizer.
* `kernel`: how the memory of an optimizer fades.
* `watch`: a monitored run as it happens.
* `report`: a monitored run as a page.
* `atlas`: every optimizer of the known libraries.
* `reproduce`: the paper's figures.
* `study`: what memory causes, by the dial.
* `sweep`: any grid of training runs.
* `plan`: what it will take.
"""
