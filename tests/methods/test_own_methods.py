"""Methods that users write: a function of outputs, a term, a whole distiller, each found by its name and checked as ours."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from gankd.losses import kd_loss
from gankd.methods import (
    METHODS,
    Distiller,
    FeatureTermConfig,
    MethodConfig,
    Outputs,
    Setup,
    Term,
    TermConfig,
    method,
    method_config,
)
from generators.settings import Positive
from tests.methods.common import fixed_batch, make

BATCH = fixed_batch("classification")


@method("hinge_kd")
def hinge_kd(outputs: Outputs, *, margin: Positive = 0.5) -> Tensor:
    """Hinge of the teacher's logits over the student's."""
    return (outputs.teacher - outputs.student - margin).relu().mean()


class WidthConfig(FeatureTermConfig):
    """task loss + weight * distance of the pooled features' norms."""

    name: Literal["own_norms"] = "own_norms"
    """The method."""
    power: Positive = 2.0
    """Exponent of the distance."""


class Norms(Term):
    """mean | |s| - |t| |^power."""

    Config = WidthConfig

    def __init__(self, config: WidthConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps = setup.taps(config, lambda taps: taps[-1:])

    def forward(self, outputs: Outputs) -> Tensor:
        (student,), (teacher,) = self.features(outputs)
        return (student.norm(dim=1) - teacher.norm(dim=1)).abs().pow(self.config.power).mean()


class AloneConfig(MethodConfig):
    """Task loss on images seen upside down."""

    name: Literal["own_alone"] = "own_alone"
    """The method."""


class Alone(Distiller):
    """CE of the student on the flipped view."""

    Config = AloneConfig
    tasks = frozenset({"classification"})
    needs_teacher = False

    def forward(self, batch):
        outputs = self.student(self.normalize(self.augment(batch.images).flip(2)))
        return {"loss": self.task.loss(outputs, batch.labels)}


@pytest.mark.parametrize("name", ["hinge_kd", "own_norms", "own_alone"])
def test_a_method_is_found_by_its_name_from_the_moment_it_is_defined(name: str) -> None:
    distiller, _ = make(name, "classification")
    losses = distiller(BATCH)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in distiller.student.parameters())
    assert name in METHODS and method_config(name).method is METHODS[name]


def test_a_functions_settings_are_its_keyword_parameters() -> None:
    wide, _teacher = make("hinge_kd", "classification", {"margin": 100.0, "weight": 3.0})
    assert wide(BATCH)["hinge_kd"].item() == 0
    config = method_config({"name": "hinge_kd", "margin": 0.25, "weight": 3})
    assert (config.margin, config.weight, config.task_weight) == (0.25, 3.0, 1.0)
    with pytest.raises(ValueError, match="unknown key 'margn'; did you mean 'margin'"):
        method_config({"name": "hinge_kd", "margn": 1})
    with pytest.raises(ValueError, match=r"margin: .*greater than 0, got 0"):
        method_config({"name": "hinge_kd", "margin": 0})
    with pytest.raises(ValueError, match="unknown method 'hinge_kt'; did you mean 'hinge_kd'"):
        method_config("hinge_kt")


def test_a_plain_function_is_a_method_and_equals_ours_of_the_same_equation() -> None:
    def mine(outputs: Outputs) -> Tensor:
        return kd_loss(student_logits=outputs.student, teacher_logits=outputs.teacher)

    config = method_config(mine)
    distiller, _ = make(config.name, "classification", config)
    ours, _ = make("kd", "classification", {"alpha": 0.5})
    with torch.no_grad():
        assert distiller(BATCH)["loss"].item() == pytest.approx(2 * ours(BATCH)["loss"].item(), rel=1e-6)
    assert config.name == "mine" and "mine" not in METHODS
    assert method_config(lambda outputs: outputs.student.square().mean()).method is not config.method


def test_a_name_that_is_taken_is_refused() -> None:
    class KDConfig(TermConfig):
        """Another one."""

        name: Literal["kd"] = "kd"
        """The method."""

    with pytest.raises(ValueError, match=r"method 'kd' .* exists already.*take another name"):

        class Mine(Term):
            """Another one."""

            Config = KDConfig


def test_own_terms_go_beside_ours() -> None:
    config = {"name": "combined", "terms": [{"name": "own_norms", "weight": 2}, {"name": "hinge_kd"}, {"name": "sp"}]}
    distiller, _ = make("combined", "classification", config)
    assert isinstance(distiller.terms["own_norms"], nn.Module)
    losses = distiller(BATCH)
    total = losses["task"] + 2 * losses["own_norms"] + losses["hinge_kd"] + 3000 * losses["sp"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-5)
