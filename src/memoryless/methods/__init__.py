"""An optimizer alone: momentum variables and a readout phi, or any torch optimizer run as it is.

May import `flat`, `isolation`, `progress`, `errors` and `render`; knows no loss.

In reading order: `method` (momentum variables and phi; init, update), `kernel` (the weight of each age, sums over it),
`catalogue` (the known methods), `live_optimizer` (a torch optimizer -> a catalogue method), `call` and `named` (an
optimizer in text),
`past` (what a schedule did before, and states that contradict it), `buffers` (a live optimizer's memory in momentum form),
`wrapped` (the optimizer inside a framework's),
`method_optimizer` (a method -> a torch optimizer), `forgetting` (how long is too long), `forward_mode` (derivatives along a
direction), and the rooms `black_box` (any torch optimizer, run as it is) and `fading` (does its memory fade, and how fast).
"""
