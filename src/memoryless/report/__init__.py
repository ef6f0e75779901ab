"""Results as tables for the terminal and as pictures: no numbers are made here.

It may import any room but `cli`. Colours and marks come from `render.style`, numbers as text from `render.numbers`; a
derivation prints itself (`formulas.printing`). One file per command, with the command's name:

* `audit`: an audited run: effects measured beside predicted, and the verdict.
* `check`: checked steps: the verdict, likely causes, what a step is made of.
* `compare`: several optimizers, a line each.
* `betas`: which betas at which batch size, in words, a table and a picture.
* `map`: a map over betas, as a table and a picture; `panel`: such a map in a picture, which both share.
* `verify`: the errors of Theorem 3.2 and their slopes.
* `kernel`: how a memory fades.
* `watch`: a monitored run in the terminal.
* `report`: a monitored run as a page.
* `atlas`: all optimizers, on the screen, as Markdown, and as a page that sorts itself.
* `reproduce`: Fig. 1 in words and as a picture; `claims`: the other figures, with the verdicts on what is claimed.
* `sweep`: a grid of runs, as a table and a picture.
* `plan`: what such a grid will take.
"""
