"""Does a memory fade, and how fast?

May import `methods`, `methods.black_box` and what lies below `methods`.

In reading order: `tails` (how a response ends, ages and half-lives), `memory` (the door: `memory_kernel`, and momentum forms in
closed form), `krylov` (a disturbance of a memory at rest), `experiment` (a black box, followed
after a disturbance).
"""
