"""Factor transfer: an autoencoder first paraphrases the teacher's last map; a translator then gives the student's.

Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, arXiv 1802.04977.
"""

from typing import Literal

from torch import Tensor, nn

from gankd.losses import factor_transfer_loss, hint_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import MapTerm, stages
from gankd.methods.terms import FeatureTermConfig
from generators.settings import Count, Positive, Weight


class FTConfig(FeatureTermConfig):
    """First the paraphraser's reconstruction, then task loss + weight mean |q_s - q_t| on the maps of the last stage."""

    name: Literal["ft"] = "ft"
    """The method's name."""
    weight: Weight = 200.0
    """Weight of the term."""
    factor_share: Positive = 0.5
    """Channels of the factors, as a share of the teacher's."""
    power: Count = 2
    """Power of a factor's entries before the mean over its channels."""
    norm: Count = 1
    """Power of the difference; 1 is its size."""
    first_stage: Positive = 30 / 240
    """Steps of the paraphraser, before the training's own, as a share of them; its learning rate is constant."""


def encoder(in_channels: int, factors: int, *, norm: bool) -> nn.Sequential:
    """Three 3x3 convolutions, each with LeakyReLU, to the factors: [N, C, H, W] -> [N, factors, H, W]."""
    layers: list[nn.Module] = []
    for before, after in ((in_channels, in_channels), (in_channels, factors), (factors, factors)):
        layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """The factors [N, kC, H, W] of a teacher's map that it can be made from again; without batch norm."""

    def __init__(self, channels: int, factors: int):
        super().__init__()
        self.encoder = encoder(channels, factors, norm=False)
        layers: list[nn.Module] = []
        for before, after in ((factors, factors), (factors, channels), (channels, channels)):
            layers += [nn.ConvTranspose2d(before, after, 3, padding=1), nn.LeakyReLU(0.1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        """The reconstruction, [N, C, H, W]."""
        return self.decoder(self.encoder(feature))


class FT(MapTerm):
    """q = flatten(mean_c factor^2) to norm 1; mean |q_s - q_t| between the translated student's map and the paraphrased
    teacher's. The first stage trains the paraphraser alone, the second everything but it.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "ft", "factor_share": 0.25})

    Loss: losses.features.factor_transfer_loss
    """

    Config = FTConfig
    choose = staticmethod(lambda taps: stages(taps)[-1:])
    smallest = 2
    first_stage_trains_student = False
    first_stage_modules = ("paraphrasers",)

    def __init__(self, config: FTConfig, setup: Setup):
        super().__init__(config, setup)
        widths = [(s[0], t[0], max(1, int(config.factor_share * t[0]))) for s, t in zip(*self.shapes, strict=True)]
        self.paraphrasers = nn.ModuleList(Paraphraser(teacher, factors) for _, teacher, factors in widths)
        self.translators = nn.ModuleList(encoder(student, factors, norm=True) for student, _, factors in widths)
        self.first_stage_share = config.first_stage

    def first_stage_loss(self, outputs: Outputs) -> Tensor:
        features = [outputs.teacher_features[path] for path in self.teacher_taps]
        return sum(
            hint_loss(student_feature=paraphrase(feature), teacher_feature=feature)
            for paraphrase, feature in zip(self.paraphrasers, features, strict=True)
        )

    def forward(self, outputs: Outputs) -> Tensor:
        return sum(
            factor_transfer_loss(
                student_factor=translate(student),
                teacher_factor=paraphrase.encoder(teacher),
                p1=self.config.power,
                p2=self.config.norm,
            )
            for translate, paraphrase, student, teacher in zip(
                self.translators, self.paraphrasers, *self.features(outputs), strict=True
            )
        )
