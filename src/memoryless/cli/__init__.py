"""The command line reads options, calls the library, shows what came. It may import any room; no room imports it.

In reading order: `main` (commands, errors), `options` (that commands share; no torch), `setup` (what a command works on), then
one file per command with the command's name: `audit`, `compare`, `betas`, `derive`, `verify`, `kernel`, `atlas`, `reproduce`.
Torch and whatever needs it are imported inside `run`, so that --help does not wait.
"""
