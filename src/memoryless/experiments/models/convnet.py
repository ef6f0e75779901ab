"""The convolutional network of studies of the edge of stability (Cohen et al. 2021, https://arxiv.org/abs/2103.00065)."""

from torch import nn


def convnet(channels: int = 3, size: int = 32, widths: tuple[int, ...] = (32, 32), classes: int = 10) -> nn.Sequential:
    """3 x 3 convolutions, each followed by tanh and by averages over 2 x 2 pixels, and a linear layer.

    Args:
        channels: of the images.
        size: of the images, a multiple of 2^len(widths).
        widths: channels after each convolution.
        classes: outputs.

    Returns:
        (n, channels, size, size) to (n, classes).

    Example:
        >>> sum(p.numel() for p in convnet().parameters())
        30634
    """
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
    edge = size // 2 ** len(widths)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * edge * edge, classes))
