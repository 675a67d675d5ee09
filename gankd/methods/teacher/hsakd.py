"""Hierarchical self-supervised augmented distillation: at every stage, what class an image is of and how it was turned.

Yang, An, Cai, Xu, "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021, arXiv 2107.13715.

A teacher needs its auxiliary branches first. `hsakd` trains them on the frozen teacher in a first stage, or reads them
from a file; `hsakd_teacher` trains a network together with its branches (the paper's Teacher*, a better one).
"""

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from gankd.data.loader import Batch, BatchSource
from gankd.losses import hsakd_student_loss, hsakd_teacher_loss, rotation_batch
from gankd.methods.base import Distiller, MethodConfig
from gankd.methods.setup import Setup
from gankd.methods.teacher.rotation_branches import Branches, check_square, load_branches, save_branches, stage_paths
from gankd.models.taps import Taps
from gankd.models.teacher import Teacher
from gankd.tasks import CLASSIFICATION
from generators.settings import Count, Positive, Settings

HINT = "Its labels are pairs of class and rotation; for a scalar target use method kd, crd, sp or at."


class HSAKDConfig(MethodConfig):
    """task loss + KL of the classes + sum over stages of KL of classes and rotations, on four rotations of each image."""

    name: Literal["hsakd"] = "hsakd"
    """The method's name."""
    temperature: Positive = 3.0
    """What all logits are divided by."""
    stages: Count | None = None
    """Number of stages that get a branch, the last ones. Null: as many as both networks have."""
    branches: Path | None = None
    """File of the teacher's branches (safetensors): read where it exists, else trained first and written there."""
    first_stage_share: Positive = 100 / 240
    """Steps in which the teacher's branches are trained first, as a share of the student's."""


class HSAKDTeacherConfig(MethodConfig):
    """task loss + sum over stages of CE of classes and rotations, on four rotations of every image; no teacher."""

    name: Literal["hsakd_teacher"] = "hsakd_teacher"
    """The method's name."""
    branches: Path | None = None
    """File that the trained branches are written to, for `hsakd` with this network as the teacher."""

    @property
    def files(self) -> tuple[Path, ...]:
        return ()


class HSAKD(Distiller):
    """CE(p_s[upright], y) + KL_T(p_s, p_t) + sum_l KL_T(q_s,l, q_t,l), all KL over all four rotations, T^2 times.

    p are classes, q_l classes x rotations by the branch of stage l. The last stages of both networks are paired.
    Raises ValueError: a network that cannot be cut behind its stages, images that are not square; when it is trained, a
    file of branches that do not fit.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "hsakd", "stages": 2})

    Loss: losses.rotations.hsakd_student_loss
    """

    Config = HSAKDConfig
    tasks = frozenset({CLASSIFICATION})
    hint = HINT

    def __init__(self, config: HSAKDConfig, setup: Setup):
        super().__init__(config, setup)
        image_shape, num_classes = setup.data.image_shape, setup.task.num_classes
        check_square("hsakd", image_shape)
        networks = setup.student, setup.teacher.module
        most = min(len(stage_paths(network, image_shape)) for network in networks)
        if (config.stages or most) > most:
            raise ValueError(f"method hsakd: stages is {config.stages}, but the networks have {most} in common.")
        self.branches, self.fixed_branches = (  # the student's, the teacher's
            Branches(network, image_shape, num_classes, config.stages or most) for network in networks
        )
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
        return {"loss": total, "task": task, "divergence": kd, "auxiliary": auxiliary}

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
        self.teacher, self.task, self.config = main.teacher, main.task, main.config
        self.augment, self.normalize = main.augment, main.normalize
        self.__dict__["student"] = main.student  # the loop looks at it, but it is no module of this one
        self.fixed_branches = main.fixed_branches.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view, _ = rotation_batch(images=self.augment(batch.images), labels=batch.labels)
        logits, auxiliary_logits = ask_teacher(self.teacher, self.fixed_branches, view)
        _, _, auxiliary = hsakd_teacher_loss(logits=logits, auxiliary_logits=auxiliary_logits, labels=batch.labels)
        return {"loss": auxiliary, "auxiliary": auxiliary}


class HSAKDTeacher(Distiller):
    """CE(p[upright], y) + sum_l CE(q_l, class and rotation): a network that learns together with its branches.

    Raises ValueError: a network that cannot be cut behind its stages, images that are not square.

    >>> file = "branches.safetensors"
    >>> teacher = gankd.distill(teacher, real=train, method={"name": "hsakd_teacher", "branches": file})
    >>> student = gankd.distill(student, teacher, real=train, method={"name": "hsakd", "branches": file})

    Loss: losses.rotations.hsakd_teacher_loss
    """

    Config = HSAKDTeacherConfig
    tasks = HSAKD.tasks
    needs_teacher = False
    hint = HINT

    def __init__(self, config: HSAKDTeacherConfig, setup: Setup):
        super().__init__(config, setup)
        image_shape = setup.data.image_shape
        check_square("hsakd_teacher", image_shape)
        num_stages = len(stage_paths(setup.student, image_shape))
        self.branches = Branches(setup.student, image_shape, setup.task.num_classes, num_stages)

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
