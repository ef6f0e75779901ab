"""Results as tables for the terminal and as pictures: no numbers are made here. It may import any room but the command line.

One file per command, with the command's name: `audit`, `compare`, `betas`, `verify`, `kernel`, `atlas`, `reproduce`. Colours
and marks come from `render.style`, numbers as text from `render.numbers`; `derive` prints itself (`formulas.printing`).
"""
