"""ResNet-50 (He et al. 2016, https://arxiv.org/abs/1512.03385) for images of 32 x 32 pixels.

The first convolution is 3 x 3 at stride 1 without a pooling, as is usual for CIFAR; else it is the network of that paper.
"""

from torch import Tensor, nn

EXPANSION = 4


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions, added to the input or to its projection."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        after = EXPANSION * width
        self.branch = nn.Sequential(
            _convolution(before, width, 1),
            nn.ReLU(),
            _convolution(width, width, 3, stride),
            nn.ReLU(),
            _convolution(width, after, 1),
        )
        same = stride == 1 and before == after
        self.skip = nn.Identity() if same else _convolution(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, size, size) to (n, 4 width, size / stride, size / stride)."""
        return (self.branch(x) + self.skip(x)).relu()


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 10) -> nn.Sequential:
    """Stages of bottlenecks, each stage twice as wide and half as large as the one before.

    Args:
        blocks: of each stage; (3, 4, 6, 3) is ResNet-50.
        width: of the first stage.
        classes: outputs.

    Returns:
        (n, 3, size, size) to (n, classes).

    Example:
        >>> sum(p.numel() for p in resnet().parameters())
        23520842
    """
    layers: list[nn.Module] = [_convolution(3, width, 3), nn.ReLU()]
    before = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Bottleneck(before, width * 2**stage, 2 if stage and not block else 1))
            before = EXPANSION * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
