"""The temperature of the methods on outputs: a number, or one that is learned against the student.

Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation" (CTKD), AAAI 2023,
arXiv 2211.16231.

method: {name: dkd, temperature: {learn: global, min: 1, range: 20}}
"""

from typing import Annotated, Literal

import torch
from pydantic import Discriminator, Tag
from torch import Tensor, nn

from gankd.losses import ctkd_temperature, curriculum_strength
from gankd.losses.precision import full_precision
from gankd.methods.setup import Setup
from gankd.methods.terms import Term, TermConfig
from generators.settings import Positive, Settings, Share, Weight

BOUND = 6.0  # |theta| beyond it moves T by less than 0.3 % of its range, and hardly gets a gradient to come back by


class LearnedTemperature(Settings):
    """T = min + range * sigmoid(theta), with a theta that climbs the loss which the student descends (CTKD)."""

    learn: Literal["global", "instance"] = "global"
    """One temperature for all samples, or one a sample, read from the student's and the teacher's outputs."""
    min: Positive = 1.0
    """The lowest temperature."""
    range: Positive = 20.0
    """Highest minus lowest temperature. Training starts at min + 0.73 range."""
    curriculum: Share = 10 / 240
    """Share of the run in which the strength of theta's steps rises from 0 to 1 (the paper's 10 epochs of 240 on CIFAR, 5
    of 120 on ImageNet). 0: full strength from the start."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the strength rises."""
    weight_decay: Weight = 0.0
    """Weight decay of theta. It draws T to min + range / 2, which is no part of the method; the published code has 5e-4."""


TemperatureSetting = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[LearnedTemperature, Tag("learned")],
    Discriminator(lambda value: "learned" if isinstance(value, dict | LearnedTemperature) else "number"),
]


class Temperature(nn.Module):
    """What outputs are divided by. The learned form follows the equation of `ctkd_temperature`.

    global: theta is one parameter that starts at 1. instance: theta is what a small network makes of both outputs
    [N, 2K]: Linear(2K, 128), BatchNorm, ReLU, Linear(128, 1), the last layer starting as the constant 1. The paper does
    not fix that network. Its inputs are detached, so that the student cannot steer its own temperature. theta stays
    within [-6, 6]: near T = 1 a single step could throw it to where the sigmoid is flat.

    The curriculum's strength multiplies the optimiser's step. The published code multiplies the gradient, which is the
    same for SGD (but for what its momentum remembers of a lower strength) and nothing at all for Adam, whose steps do not
    depend on the size of gradients.
    """

    buffers_stay_equal = True

    def __init__(self, setting: float | LearnedTemperature, num_outputs: int):
        super().__init__()
        self.setting = setting
        self.learned = isinstance(setting, LearnedTemperature)
        self.strength = 1.0
        """Strength of the curriculum in this step."""
        self.mean: Tensor | None = None
        """Mean of the temperatures of the last batch, a scalar without gradient."""
        if self.learned and setting.learn == "global":
            self.theta = nn.Parameter(torch.ones(1))
        elif self.learned:
            last = nn.Linear(128, 1)
            nn.init.zeros_(last.weight)
            nn.init.ones_(last.bias)
            self.network = nn.Sequential(nn.Linear(2 * num_outputs, 128), nn.BatchNorm1d(128), nn.ReLU(), last)
        for name, parameter in list(self.named_parameters()):  # what the step that is not yet weakened started from
            self.register_buffer(f"before_{name.replace('.', '_')}", parameter.detach().clone())

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> float | Tensor:
        """A number, [1], or [N, 1] for outputs [N, K]."""
        if not self.learned:
            return self.setting
        if self.setting.learn == "global":
            theta = self.theta
        else:
            outputs = torch.cat([full_precision(student_logits), full_precision(teacher_logits)], dim=1).detach()
            with torch.autocast(outputs.device.type, enabled=False):
                theta = self.network(outputs).clamp(-BOUND, BOUND)  # [N, 1]
        temperature = ctkd_temperature(
            parameter=theta, strength=1.0, temperature_min=self.setting.min, temperature_range=self.setting.range
        )
        self.mean = temperature.detach().mean()
        return temperature

    def parameter_groups(self) -> list[dict]:
        """theta's own weight decay."""
        if not self.learned:
            return []
        return [{"params": list(self.parameters()), "rate": 1.0, "weight_decay": self.setting.weight_decay}]

    @torch.no_grad()
    def start_step(self, step: int, num_steps: int) -> None:
        """The paper's curriculum, step by step instead of epoch by epoch: weakens the step that was made last."""
        if not self.learned:
            return
        length = round(self.setting.curriculum * num_steps)
        last, self.strength = (
            curriculum_strength(epoch=epoch, num_epochs=length, schedule=self.setting.schedule)
            for epoch in (step, step + 1)
        )
        for parameter, before in zip(self.parameters(), self.buffers(recurse=False), strict=True):
            parameter.copy_(before.lerp(parameter, last))
            if self.setting.learn == "global":
                parameter.clamp_(-BOUND, BOUND)
            before.copy_(parameter)


class TemperatureTerm(Term):
    """A term on outputs whose config has a `temperature`."""

    reads_teacher_outputs = True

    def __init__(self, config: TermConfig, setup: Setup):
        super().__init__(config, setup)
        self.temperature = Temperature(config.temperature, setup.task.num_outputs)

    def metrics(self) -> dict[str, Tensor]:
        return {"temperature": self.temperature.mean} if self.temperature.learned else {}

    def parameter_groups(self) -> list[dict]:
        return self.temperature.parameter_groups()

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        super().start_step(step, num_steps, steps_per_epoch)
        self.temperature.start_step(step, num_steps)
