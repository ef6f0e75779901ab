"""The monitor where people train, one line each. A package is imported by its own file alone.

It may import `live` and every room below it:

* `transformers`: a callback for Hugging Face's Trainer.
* `lightning`: a callback for Lightning's Trainer.
* `accelerate`: a monitor for a loop with an Accelerator; needs nothing of the package.
"""
