"""Hierarchical self-supervised augmented distillation: at every stage, what class an image is of and how it was turned.

Yang, An, Cai, Xu, "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021, arXiv 2107.13715.

A teacher needs its auxiliary branches first. `hsakd` trains them on the frozen teacher in a first stage, or reads them
from a file; `hsakd_teacher` trains a network together with its branches (the paper's Teacher*, a better one):

    teacher = gankd.distill(teacher, real=data, method={"name": "hsakd_teacher", "branches": "branches.safetensors"})
    student = gankd.distill(student, teacher, real=data, method={"name": "hsakd", "branches": "branches.safetensors"})
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from gankd.data.loader import Batch, BatchSource
from gankd.distributed.processes import is_distributed
from gankd.losses import hsakd_student_loss, hsakd_teacher_loss, rotation_batch
from gankd.methods.base import Distiller, MethodConfig
from gankd.methods.setup import Setup
from gankd.models.mobilenet import GROUPS, InvertedResidual, MobileNetV2
from gankd.models.resnet import BasicBlock, Bottleneck, ResNet, ResNet50, initialize_convolutions
from gankd.models.shufflenet import ShuffleV1, ShuffleV2, UnitV1, UnitV2
from gankd.models.small_resnet import ResidualBlock, SmallResNet
from gankd.models.tail import NetworkTail
from gankd.models.taps import Taps
from gankd.models.teacher import Teacher
from gankd.models.vgg import VGG
from gankd.models.wrn import PreactivationBlock, WideResNet
from gankd.tasks import CLASSIFICATION
from generators.checkpoints import replace_whole
from generators.settings import Count, Positive, Settings

NUM_ROTATIONS = 4
HINT = "Its labels are pairs of class and rotation; for a scalar target use method kd, crd, sp or at."


class HSAKDConfig(MethodConfig):
    """task loss + KL of the classes + sum over stages of KL of classes and rotations, on four rotations of each image."""

    name: Literal["hsakd"] = "hsakd"
    """The method."""
    temperature: Positive = 3.0
    """Softens all distributions."""
    stages: Count | None = None
    """Last stages that get a branch. Null: as many as both networks have."""
    branches: Path | None = None
    """File of the teacher's branches (safetensors): read where it exists, else trained first and written there."""
    first_stage_share: Positive = 100 / 240
    """Steps of training the teacher's branches, as a share of the student's."""


class HSAKDTeacherConfig(MethodConfig):
    """task loss + sum over stages of CE of classes and rotations, on four rotations of every image; no teacher."""

    name: Literal["hsakd_teacher"] = "hsakd_teacher"
    """The method."""
    branches: Path | None = None
    """File that the trained branches are written to, for `hsakd` with this network as the teacher."""


class Branch(nn.Module):
    """What follows a stage, with weights of its own, up to logits of pairs of class and rotation."""

    def __init__(self, before: nn.Module, rest: NetworkTail):
        super().__init__()
        self.before, self.rest = before, rest

    def forward(self, feature: Tensor, images: Tensor) -> Tensor:
        return self.rest(self.before(feature), images)


class Branches(nn.ModuleDict):
    """A branch for each of the last stages of a network, freshly initialised.

    The branch of a stage is a copy of the stages behind it; that of the last stage one more last stage, without stride.
    Every branch ends at the network's own resolution and width, and is as deep as the network or a stage deeper.

    Raises:
        ValueError: a network whose stages are not known.
    """

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int], num_classes: int, num_stages: int):
        super().__init__()
        self.paths = stage_paths(model)[-num_stages:]
        for path in self.paths:
            rest = NetworkTail(model, path, image_shape)
            linear, name = next((m, name) for name, m in rest.network.named_modules() if isinstance(m, nn.Linear))
            parent, _, name = name.rpartition(".")
            setattr(
                rest.network.get_submodule(parent), name, nn.Linear(linear.in_features, NUM_ROTATIONS * num_classes)
            )
            before = one_more_stage(model) if path == self.paths[-1] else nn.Identity()
            self[path.replace(".", "_")] = Branch(before, rest)
        self.cpu().requires_grad_(True).train()  # the model may be a frozen one on a device
        for module in self.modules():  # not a copy of the model's weights: the paper's branches start anew
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        initialize_convolutions(self)

    def forward(self, features: list[Tensor], images: Tensor) -> list[Tensor]:
        """Features at `paths` and the images they are of, [N, C, S, S] -> logits [N, 4K] of every stage."""
        return [branch(feature, images) for branch, feature in zip(self.values(), features, strict=True)]


def stage_paths(model: nn.Module) -> list[str]:
    """The outputs of a network's stages.

    Raises:
        ValueError: a network whose stages are not known.
    """
    one_more_stage(model)
    return model.feature_taps()[1:-1]


def one_more_stage(model: nn.Module) -> nn.Module:
    """The last stage once more, from its own output to the same shape.

    Raises:
        ValueError: a network whose stages are not known.
    """
    if isinstance(model, SmallResNet):
        width = model.head.in_features
        return ResidualBlock(width, width, stride=1)
    if isinstance(model, ResNet):
        width = model.fc.in_features
        return nn.Sequential(*(BasicBlock(width, width, stride=1) for _ in model.layer3))
    if isinstance(model, ResNet50):
        width = model.linear.in_features
        return nn.Sequential(*(Bottleneck(width, width // 4, stride=1) for _ in model.layer4))
    if isinstance(model, WideResNet):
        width = model.fc.in_features
        return nn.Sequential(*(PreactivationBlock(width, width, stride=1) for _ in model.block3.layer))
    if isinstance(model, VGG):
        width, layers = model.classifier.in_features, []
        for _ in range(len(model.block4) // 3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers)
    if isinstance(model, MobileNetV2):
        blocks, before = [], GROUPS[-1][1]
        for expansion, channels, repeats, _ in GROUPS[-2:]:
            for _ in range(repeats):
                blocks.append(InvertedResidual(before, channels, 1, expansion))
                before = channels
        return nn.Sequential(*blocks)
    if isinstance(model, ShuffleV1):
        width = model.linear.in_features
        return nn.Sequential(*(UnitV1(width, width, 1, groups=3, first_groups=3) for _ in model.layer3))
    if isinstance(model, ShuffleV2):
        return nn.Sequential(*(UnitV2(model.conv2.in_channels) for _ in model.layer3))
    raise ValueError(
        f"methods hsakd and hsakd_teacher repeat the stages of a network, and those of {type(model).__name__} are not "
        "known; use small_resnet, a resnet, ResNet50, wrn, vgg, MobileNetV2, ShuffleV1 or ShuffleV2, or another method."
    )


def check_square(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raise a ValueError unless images can be turned by 90 degrees."""
    if image_shape[1] != image_shape[2]:
        raise ValueError(
            f"method {name} turns images by 90 degrees, and {image_shape[1]} x {image_shape[2]} pixels are not square; "
            "crop them, or use another method."
        )


class HSAKD(Distiller):
    """CE(p_s[upright], y) + KL_T(p_s, p_t) + sum_l KL_T(q_s,l, q_t,l), all KL over all four rotations, T^2 times.

    p are classes, q_l classes x rotations by the branch of stage l. The last stages of both networks are paired.

    Raises:
        ValueError: a network whose stages are not known, images that are not square; when it is trained, a file of branches
            that do not fit.
    """

    Config = HSAKDConfig
    tasks = frozenset({CLASSIFICATION})
    hint = HINT

    def __init__(self, config: HSAKDConfig, setup: Setup):
        super().__init__(config, setup)
        image_shape, num_classes = setup.data.image_shape, setup.task.num_classes
        check_square("hsakd", image_shape)
        most = min(len(stage_paths(setup.student)), len(stage_paths(setup.teacher.module)))
        if (config.stages or most) > most:
            raise ValueError(f"method hsakd: stages is {config.stages}, but the networks have {most} in common.")
        self.branches = Branches(setup.student, image_shape, num_classes, config.stages or most)
        self.fixed_branches = Branches(
            setup.teacher.module, image_shape, num_classes, config.stages or most
        )  # the teacher's
        self.fixed_branches.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        super().train(mode)
        self.fixed_branches.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, _ = rotation_batch(images=self.augment(batch.images), labels=batch.labels)  # [4N, C, S, S]
        teacher_logits, teacher_auxiliary = ask_teacher(self.teacher, self.fixed_branches, view)
        images = self.normalize(view)
        logits, features = Taps(self.student, self.branches.paths)(images)
        total, task, kd, auxiliary = hsakd_student_loss(
            student_logits=logits,
            student_auxiliary_logits=self.branches(features, images),
            teacher_logits=teacher_logits,
            teacher_auxiliary_logits=teacher_auxiliary,
            labels=batch.labels,
            temperature=self.config.temperature,
        )
        return {"loss": total, "task": task, "kd": kd, "auxiliary": auxiliary}

    def first_stage(self, training: Settings) -> tuple[Distiller, Settings] | None:
        path = self.config.branches
        if path is not None and path.exists():
            load_branches(path, self.fixed_branches, self.teacher.module)
            return None
        steps = max(1, round(self.config.first_stage_share * training.steps))
        return TeacherBranches(self), training.replace(steps=steps, epochs=None, milestones=(0.3, 0.6, 0.9))

    def prepare(self, data: BatchSource) -> None:
        self.fixed_branches.requires_grad_(False).eval()
        if self.config.branches is not None and not self.config.branches.exists():
            save_branches(self.config.branches, self.fixed_branches, self.teacher.module)


class TeacherBranches(Distiller):
    """The first stage: sum_l CE(q_t,l, class and rotation), on the features of the frozen teacher."""

    tasks = HSAKD.tasks

    def __init__(self, main: HSAKD):
        nn.Module.__init__(self)
        self.teacher, self.task, self.config, self.augment = main.teacher, main.task, main.config, main.augment
        self.fixed_branches = main.fixed_branches.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, _ = rotation_batch(images=self.augment(batch.images), labels=batch.labels)
        logits, auxiliary_logits = ask_teacher(self.teacher, self.fixed_branches, view)
        _, _, auxiliary = hsakd_teacher_loss(logits=logits, auxiliary_logits=auxiliary_logits, labels=batch.labels)
        return {"loss": auxiliary, "auxiliary": auxiliary}


class HSAKDTeacher(Distiller):
    """CE(p[upright], y) + sum_l CE(q_l, class and rotation): a network that learns together with its branches.

    Raises:
        ValueError: a network whose stages are not known, images that are not square.
    """

    Config = HSAKDTeacherConfig
    tasks = HSAKD.tasks
    needs_teacher = False
    hint = HINT

    def __init__(self, config: HSAKDTeacherConfig, setup: Setup):
        super().__init__(config, setup)
        image_shape = setup.data.image_shape
        check_square("hsakd_teacher", image_shape)
        self.branches = Branches(setup.student, image_shape, setup.task.num_classes, len(stage_paths(setup.student)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, _ = rotation_batch(images=self.augment(batch.images), labels=batch.labels)
        images = self.normalize(view)
        logits, features = Taps(self.student, self.branches.paths)(images)
        auxiliary_logits = self.branches(features, images)
        total, task, auxiliary = hsakd_teacher_loss(
            logits=logits, auxiliary_logits=auxiliary_logits, labels=batch.labels
        )
        return {"loss": total, "task": task, "auxiliary": auxiliary}

    def finish(self) -> None:
        if self.config.branches is not None:
            save_branches(self.config.branches, self.branches, self.student)


def ask_teacher(teacher: Teacher, branches: Branches, view: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The teacher's class logits [4N, K] without gradient, and those of its branches [4N, 4K]."""
    logits, features = teacher.outputs_and_taps(view, branches.paths)
    return logits, branches(features, view)


def save_branches(path: Path, branches: Branches, model: nn.Module) -> None:
    """Write a network's branches as safetensors, with a digest of the network's weights; once for all processes."""
    if is_distributed() and distributed.get_rank() > 0:
        return
    with replace_whole(path) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in branches.state_dict().items()}
        save_file(tensors, temporary, metadata={"network": digest(model)})


def load_branches(path: Path, branches: Branches, model: nn.Module) -> None:
    """Read what `save_branches` wrote for `model`; branches of more stages than asked for may be in the file.

    Raises:
        ValueError: no such file, or one for another network.
    """
    try:
        with safe_open(path, "pt") as file:
            belongs = (file.metadata() or {}).get("network") == digest(model)
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.split(".")[0] in branches}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file ({error}); delete it to train anew.") from error
    if not belongs:
        raise ValueError(
            f"{path} holds the branches of another network than this teacher; name another file in method.branches."
        )
    try:
        branches.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the teacher's branches: {str(error)[:300]}") from error


def digest(model: nn.Module) -> str:
    """A short hash of a network's weights and statistics."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
