"""SimReg: a backbone regresses other networks' features through heads that are dropped afterwards, without labels.

Navaneet, Koohpayegani, Tejankar, Pirsiavash, "SimReg: Regression as a Simple Yet Effective Tool for Self-supervised
Knowledge Distillation", BMVC 2021, arXiv 2201.05131.
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from gankd.data.augment import CROPPED, Augment, AugmentationConfig
from gankd.data.loader import Batch
from gankd.data.views import Views, view_of
from gankd.losses import multi_teacher_simreg_loss
from gankd.methods.label_free.base import LabelFree, LabelFreeConfig
from gankd.methods.setup import Setup
from gankd.models import ModelConfig
from gankd.models.taps import INPUT
from gankd.models.teacher import Teacher
from generators.settings import Count, Weight


class TeacherModel(ModelConfig):
    """A network whose features are regressed."""

    num_outputs: Count | None = None
    """Number of outputs of the network in the checkpoint, which nothing reads. Null: as many as the student has."""

    def build(self, num_outputs: int, in_channels: int) -> nn.Module:
        """With its checkpoint's weights; raises a ValueError without one, or one that does not fit the network."""
        if self.checkpoint is None:
            raise ValueError(f"simreg: teacher {self.name} of `teachers` has no checkpoint; name its weights.")
        return super().build(self.num_outputs or num_outputs, in_channels)


class SimRegConfig(LabelFreeConfig):
    """sum over teachers of weight * |head(feature)/|.| - [teacher's feature]/|.||^2."""

    name: Literal["simreg"] = "simreg"
    """The method's name."""
    head_layers: Count = 4
    """Number of linear layers of each regression head: two for every perceptron with one hidden layer, twice as wide as the
    student's feature (4: a projection and a prediction), or 1 behind a batch norm."""
    teachers: tuple[TeacherModel, ...] = ()
    """Networks with their checkpoints that teach beside the teacher that is given (none is needed then). They see images
    normalised as the student does."""
    weights: tuple[Weight, ...] | None = None
    """The weight of each teacher's term, that of the given teacher first. Null: 1 each."""
    teacher_view: Literal["shared", "independent"] = "shared"
    """Whether the teachers see the student's view of an image or an independent one."""
    teacher_augmentation: AugmentationConfig | None = None
    """The random changes of the teachers' views, with teacher_view: independent. Null: those of the student's."""

    @property
    def networks(self) -> tuple[ModelConfig, ...]:
        return self.teachers

    @property
    def uses_teacher(self) -> bool:
        return not self.teachers

    @model_validator(mode="after")
    def _views_fit(self):
        if self.teacher_augmentation is not None and self.teacher_view == "shared":
            raise ValueError("teacher_augmentation is for teacher_view: independent; a shared view is the student's.")
        if self.head_layers > 1 and self.head_layers % 2:
            raise ValueError(
                f"head_layers: {self.head_layers} is no number of whole perceptrons; take 1 or an even number."
            )
        return self


class SimReg(LabelFree):
    """L = sum_k w_k mean_n |s_kn/|s_kn| - [t_kn]/|t_kn||^2,  s_k = head_k(pooled feature), t_k teacher k's pooled feature

    Every teacher has a regression head of its own: s_k and t_k are [N, D_k]. Where views repeat (`views`), each teacher is
    asked once about each of them. Without augmentation settings images are cropped only, the paper's weak augmentation.

    >>> backbone = gankd.pretrain(student, teacher, real=train, method="simreg", steps=2)

    Loss: losses.simreg.multi_teacher_simreg_loss
    """

    Config = SimRegConfig
    repeats_views = True
    backbone_augmentation = CROPPED

    def __init__(self, config: SimRegConfig, setup: Setup):
        super().__init__(config, setup)
        image_shape, device = setup.data.image_shape, setup.data.device
        given = setup.teacher if isinstance(setup.teacher, list) else [setup.teacher]
        self.teachers: list[Teacher] = [teacher for teacher in given if teacher is not None]
        outputs = setup.student.get_submodule(self.feature_path.removesuffix(INPUT)).out_features
        for model in config.teachers:
            network = model.build(outputs, image_shape[0])
            self.teachers.append(Teacher(network, self.normalize, device=device))
        if not self.teachers:
            raise ValueError("simreg needs a teacher; give one, or name some in `teachers`.")
        if config.weights is not None and len(config.weights) != len(self.teachers):
            raise ValueError(
                f"simreg has {len(config.weights)} weights for {len(self.teachers)} teachers; give one each."
            )
        black = torch.zeros(1, *image_shape, device=device)
        self.teacher_widths = [teacher.outputs_and_features(black)[1].shape[1] for teacher in self.teachers]
        regressors = [regression_head(self.width, width, config.head_layers) for width in self.teacher_widths]
        self.regressors = nn.ModuleList(regressors)
        if isinstance(self.augment, Views):
            if config.teacher_view == "independent":
                raise ValueError(
                    "simreg with teacher_view: independent draws fresh views in every step; leave `views` null."
                )
            self.augment.teacher = self.teacher_features
        self.teacher_augment = Augment(config.teacher_augmentation) if config.teacher_augmentation else None

    def teacher_features(self, view: Tensor) -> Tensor:
        """The pooled features of all teachers for a view, side by side, [N, sum D_k]."""
        return torch.cat([teacher.outputs_and_features(view)[1] for teacher in self.teachers], dim=1)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        view = view_of(self.augment, batch)
        outputs, pooled = self.outputs_and_pooled(view)
        if isinstance(self.augment, Views) and self.augment.training:
            features = self.augment.answers(batch)
        elif self.config.teacher_view == "shared":
            features = self.teacher_features(view)
        else:
            features = self.teacher_features((self.teacher_augment or self.augment)(batch.images))
        loss, terms = multi_teacher_simreg_loss(
            student_features=[regressor(pooled) for regressor in self.regressors],
            teacher_features=features.split(self.teacher_widths, dim=1),
            weights=self.config.weights,
        )
        losses = {"loss": loss}
        if len(terms) > 1:
            losses |= {f"teacher_{index}": term for index, term in enumerate(terms)}
        return losses, outputs, pooled


def regression_head(in_width: int, out_width: int, layers: int) -> nn.Module:
    """[N, in_width] -> [N, out_width]: perceptrons [Linear, BatchNorm, ReLU, Linear] one after the other with nothing
    between them, hidden layers twice as wide as the input; or a linear map of the standardised feature."""
    if layers == 1:
        return nn.Sequential(nn.BatchNorm1d(in_width), nn.Linear(in_width, out_width))
    parts = []
    for last in range(2, layers + 1, 2):
        width = out_width if last == layers else in_width
        parts += [
            nn.Linear(in_width, 2 * in_width),
            nn.BatchNorm1d(2 * in_width),
            nn.ReLU(),
            nn.Linear(2 * in_width, width),
        ]
    return nn.Sequential(*parts)
