"""Networks by name.

model = build_model("small_resnet", num_classes=10, in_channels=1, widths=[8, 16])
model = build_model("torchvision:resnet18", num_classes=1)
model = load_checkpoint(build_model("resnet32x4"), "resnet32x4_vanilla/ckpt_epoch_240.pth")
logits, features = forward_with_features(model, images)
"""

from gankd.models import mobilenet, resnet, shufflenet, vgg, wrn  # noqa: F401  they enter their networks into NETWORKS
from gankd.models.checkpoints import load_checkpoint
from gankd.models.config import ModelConfig
from gankd.models.networks import NETWORKS, build_model
from gankd.models.small_resnet import SmallResNet
from gankd.models.taps import Taps, batch_norms_before_relu, default_taps, feature_shapes, forward_with_features

__all__ = [
    "NETWORKS",
    "ModelConfig",
    "SmallResNet",
    "Taps",
    "batch_norms_before_relu",
    "build_model",
    "default_taps",
    "feature_shapes",
    "forward_with_features",
    "load_checkpoint",
]
