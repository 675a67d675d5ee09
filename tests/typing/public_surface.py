"""How README.md and docs/ call gankd and generators, for a type checker: nothing here is run.

A line with `type: ignore` is wrong on purpose: the checker must complain of it, and says so when it does not.
"""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import gankd
import generators
from gankd.data.splits import Splits
from gankd.evaluation import ProbeResult
from gankd.methods import Distiller, FeatureTermConfig, MethodConfig, Outputs, Setup, Term
from gankd.report import FinishedRun, as_section
from gankd.training import TrainingConfig
from generators.model import GeneratorModel, register_to_config
from generators.settings import Count, Positive, Share

# --- data, networks, training -----------------------------------------------------------------------------------------

data: Splits = gankd.load_data("digits", image_size=16, labelled=100)
train: gankd.ImageSet = data.train
teacher: nn.Module = gankd.build_model("small_resnet", num_classes=10, in_channels=1, widths=[32, 64, 128])
teacher = gankd.distill(teacher, real=data.pool, method="supervised", steps=400)
student = gankd.distill(gankd.build_model("resnet8x4", 10, 1), teacher, real=train, method={"name": "kd", "alpha": 1})
student = gankd.distill(student, teacher, real=train, training=TrainingConfig(steps=10, optimizer="sgd"))
scores: dict[str, float] = gankd.evaluate(student, data.test)
top1: float = scores["top1"]
gankd.distill("x")  # type: ignore[arg-type]
gankd.distill(student, teacher, train)  # type: ignore
gankd.distill(student, real=train, synthetic_fraction="half")  # type: ignore[arg-type]
gankd.load_data(3)  # type: ignore[arg-type]
gankd.load_data("digits", kind="regresion")  # type: ignore[arg-type]
gankd.evaluate(student)  # type: ignore[call-arg]
top1 = gankd.evaluate(student, data.test)  # type: ignore[assignment]
gankd.distil  # type: ignore[attr-defined]  # noqa: B018


class Own(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 8, 8, dtype=torch.uint8), index % 2


student = gankd.distill(nn.Linear(3, 2), gankd.Teacher(teacher, gankd.Normalize.of(train.images)), real=Own())
distiller, batches = gankd.distiller(student, teacher, real=Own(), method="crd", batch_size=64)
optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05)
for batch in batches:
    losses: dict[str, Tensor] = distiller(batch)
    losses["loss"].backward()
    optimizer.step()
model, normalize = gankd.load_model("runs/digits/students/real/seed-0")
scores = gankd.evaluate(model, data.test, normalize=normalize, task=gankd.task_of(train))

# --- generators and what is made of them ------------------------------------------------------------------------------

generator = generators.train(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4), num_classes=4, steps=10)
loaded = generators.load_generator("runs/digits/generator")
images: Tensor = loaded.sample(torch.tensor([3, 1, 4]))
grid: Image.Image = generators.sample_grid(generator)
wrapped: generators.ConditionalGenerator = generators.wrap(
    lambda z, y: z.view(-1, 3, 8, 8), resolution=8, latent_dim=192, num_classes=10
)
synthetic: gankd.ImageSet = gankd.synthesize(wrapped, teacher, real=train, num_samples=100, directory="runs/synthetic")
generators.load_generator(3)  # type: ignore[arg-type]
generator.sample([3, 1, 4])  # type: ignore[arg-type]
gankd.synthesize(generator, teacher, real=train)  # type: ignore[call-arg]

pool = gankd.feature_set(generator, 50_000, directory="runs/mine/generated")
backbone = gankd.pretrain(
    student, [teacher, teacher], real=data.pool, synthetic=pool, synthetic_fraction=0.5, method="simreg", steps=400
)
results: dict[str, ProbeResult] = gankd.probe(backbone, train, data.test)
for result in results.values():
    print(result, result.value + 1)

# --- parts of one's own -----------------------------------------------------------------------------------------------


@gankd.method("hinge")
def hinge(outputs: Outputs, *, margin: Positive = 1.0) -> Tensor:
    return (outputs.teacher - outputs.student - margin).relu().mean()


class LinearHintConfig(FeatureTermConfig):
    name: Literal["linear_hint"] = "linear_hint"
    power: Positive = 2.0


class LinearHint(Term):
    Config = LinearHintConfig

    def __init__(self, config: LinearHintConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps = setup.taps(config, lambda taps: taps[-1:])
        (student,), (teacher,) = setup.shapes(self.student_taps, self.teacher_taps)
        self.linear = nn.Linear(student[0], teacher[0])

    def forward(self, outputs: Outputs) -> Tensor:
        (student,), (teacher,) = self.features(outputs)
        return (self.linear(student) - teacher).abs().pow(2).mean()


class TwoViewsConfig(MethodConfig):
    name: Literal["two_views"] = "two_views"


class TwoViews(Distiller):
    Config = TwoViewsConfig
    tasks = frozenset({"classification", "regression"})
    needs_teacher = False

    def forward(self, batch) -> dict[str, Tensor]:
        return {"loss": self.task.loss(self.student(self.normalize(self.augment(batch.images))), batch.labels)}


student = gankd.distill(student, teacher, real=train, method=LinearHint)
student = gankd.distill(student, teacher, real=train, method=LinearHintConfig(power=1))
student = gankd.distill(student, teacher, real=train, method=lambda outputs: outputs.student.mean())
gankd.distill(student, teacher, real=train, method=3)  # type: ignore[arg-type]
gankd.register("network", 3)  # type: ignore[arg-type]


@gankd.register("network", "two_layers")
class TwoLayers(nn.Module):
    def __init__(self, num_outputs: int, in_channels: int, *, width: Count = 8):
        super().__init__()
        self.head = nn.Linear(in_channels, num_outputs)


@gankd.register("generator_network", "linear")
def linear(resolution, image_channels, num_classes, label_range, *, latent_dim: Count = 4):
    return Linear(resolution, image_channels, num_classes, label_range, latent_dim), nn.Linear(1, 1)


class Linear(GeneratorModel):
    @register_to_config
    def __init__(self, resolution: int, image_channels: int, num_classes=None, label_range=None, latent_dim: int = 4):
        super().__init__()
        self.feature_names = ("layer",)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.cat([z, self.label_code(y)], dim=1)


@gankd.register("augmentation", "solarize")
def solarize(images: Tensor, random, *, probability: Share = 0.2) -> Tensor:
    return images


@gankd.register("optimizer", "rmsprop", learning_rate=1e-3)
def rmsprop(groups, learning_rate, *, alpha: Share = 0.99):
    return torch.optim.RMSprop(groups, lr=learning_rate, alpha=alpha)


@gankd.register("report_section", "sizes")
def sizes(run: FinishedRun) -> str:
    return as_section("Sizes", f"<p>{len(run.data.test)} test images</p>")


TwoLayers(10, 1, width=4)
TwoLayers("10", 1)  # type: ignore[arg-type]
