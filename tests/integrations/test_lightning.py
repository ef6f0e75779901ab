"""Lightning's Trainer, with accumulation, clipping, dropout, logging and a partial last window: bit for bit the plain run."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.packages import need
from tests.live.monitoring.monitored import noisy_model

need("pytorch_lightning")


def fit(callbacks: list[Any], accumulate: int) -> list[torch.Tensor]:
    import pytorch_lightning as pl  # pyright: ignore[reportMissingImports]

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = noisy_model()

        def training_step(self, batch, batch_idx):
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3, betas=(0.8, 0.95))

    pl.seed_everything(0, verbose=False)
    net = Net()
    data = DataLoader(TensorDataset(torch.randn(66, 4), torch.randn(66, 1)), batch_size=6, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own: few workers, no logger
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks, accumulate_grad_batches=accumulate, gradient_clip_val=0.5,
        )  # fmt: skip
        trainer.fit(net, data)
    return [p.detach().clone() for p in net.parameters()]


def check(accumulate: int, steps: list[int]) -> None:
    from memoryless.integrations.lightning import MemoryCallback

    callback = MemoryCallback(every=6, betas=None, replays=100)
    watched, plain = fit([callback], accumulate), fit([], accumulate)
    assert callback.monitor is not None
    assert callback.monitor.notes == []
    assert [stop["step"] for stop in callback.monitor.stops] == steps
    assert all(stop["gradient_differs"] < 1e-9 for stop in callback.monitor.stops)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))


def test_every_batch_a_step():
    check(1, [6, 12, 18, 24, 30])


def test_windows_the_last_of_which_is_partial():
    check(2, [6, 12])
