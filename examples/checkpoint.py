"""Train, save a checkpoint, audit it: what did memory do at the last step?"""

import tempfile
from pathlib import Path

import torch

import memoryless as ml
from digits import setup

model, criterion, batches, optimizer = setup()
loss = ml.Loss(model, criterion, batches)
for _ in range(100):
    optimizer.zero_grad()
    torch.stack([criterion(model, batch) for batch in batches]).mean().backward()
    optimizer.step()

found = ml.audit(optimizer, loss)
print(found.verdict)
for effect in found.effects:
    print(f"{effect.measure}: {effect.measured:+.2e} measured, {effect.resummed:+.2e} resummed, {effect.first:+.2e} first")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "run.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    print(f"memoryless audit examples/digits.py:setup --checkpoint {path.name}   # the same, from the command line")
