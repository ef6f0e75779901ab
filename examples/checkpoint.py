"""Train and audit: what did memory do at the last step? With a file name, save a checkpoint there."""

import sys

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

if len(sys.argv) > 1:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, sys.argv[1])
    print(f"memoryless audit examples/digits.py:setup --checkpoint {sys.argv[1]}   # goes on from here")
