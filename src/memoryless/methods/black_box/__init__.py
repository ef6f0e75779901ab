"""Any torch optimizer as a method: its own step(), run as a pure function of state, gradient and theta.

May import `methods.method`, `methods.forgetting`, and what lies below `methods`.

In reading order: `rewound` (a live optimizer steps and is put back), `snapshot` (a memory as a value), `remade` (a live
optimizer made anew, its memory empty), `torch_method` (step() as a function), `derivative` (of the update, in two ways),
`state_vector` (the memory as one vector, a step of it), `state_map` (it at rest and disturbed).
"""
