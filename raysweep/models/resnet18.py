"""ResNet-18 for small images."""

from __future__ import annotations

from torch import Tensor, nn


class ResNet18(nn.Module):
    """torchvision's ResNet-18, untrained, with the stem for small images and without its classifier.

    He et al. 2016, arXiv 1512.03385. Its first convolution is 3×3 with stride 1, and the first pooling is omitted, as
    in SimCLR's experiments on CIFAR-10 (Chen et al. 2020, arXiv 2002.05709, Appendix B.9). It has batch normalisation.

    Args:
        channels: C of the images.
        image_size: H = W of the images.
    """

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        from torchvision.models import resnet18  # the import takes 2 s, which Conv6 does not need

        self.channels, self.image_size, self.feature_dim = channels, image_size, 512
        self.body = resnet18(weights=None)
        self.body.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        self.body.maxpool = nn.Identity()
        self.body.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 512), averaged over space."""
        features: Tensor = self.body(images)
        return features
