"""Frozen networks that help a generator: their maps, what they think of a label, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import generators
from gankd.data.sets import ImageSet
from gankd.guidance.guide import TeacherGuide, batch_norms, distance_to_norm
from gankd.guidance.maps import NetworkMaps
from gankd.models import build_model
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import Classification, Regression

TASK = Classification(("dark", "bright"))
NORMALIZE = Normalize(torch.tensor([0.5]), torch.tensor([0.25]))


class Brightness(nn.Module):
    """Sees at once which of two classes an image of 8 pixels has, or how bright it is."""

    def __init__(self, num_outputs: int = 2, sign: float = 1.0):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(1), nn.Linear(1, num_outputs)
        with torch.no_grad():
            self.fc.weight.copy_(sign * torch.tensor([[-5.0], [5.0]])[-num_outputs:])
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x).mean(dim=(2, 3)))


def real_images(count: int = 40) -> ImageSet:
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 80, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return ImageSet(
        (noise + 170 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, class_names=TASK.class_names, name="real"
    )


def teacher(module: nn.Module | None = None, **settings) -> Teacher:
    return Teacher(module or Brightness(), NORMALIZE, **settings)


def test_the_guide_of_classes_is_the_softened_cross_entropy_with_a_gradient_to_the_images() -> None:
    images, labels = torch.rand(6, 1, 8, 8).mul(2).sub(1).requires_grad_(), torch.arange(6) % 2
    one, other = teacher(), teacher(Brightness(sign=0.3))
    found = TeacherGuide([one, other], TASK, temperature=3.0)(images, labels)
    (gradient,) = torch.autograd.grad(found, images)
    assert gradient.abs().sum() > 0
    unit = ((images.double() + 1) / 2 - 0.5) / 0.25
    logits = [each.module.double()(unit) for each in (one, other)]
    assert found.item() == pytest.approx(sum(F.cross_entropy(z / 3, labels).item() for z in logits) / 2, rel=1e-5)


def test_the_guide_of_scalars_speaks_standardised_units() -> None:
    task = Regression(label_min=0.0, label_max=10.0, mean=5.0, std=2.0, unit="cells")
    images, labels = torch.rand(6, 1, 8, 8) * 2 - 1, torch.linspace(0, 10, 6)
    own = teacher(Brightness(num_outputs=1))
    expected = F.mse_loss(own((images + 1) / 2).flatten(), (labels - 5) / 2)
    assert TeacherGuide([own], task)(images, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_enough_is_the_loss_of_real_images() -> None:
    real = real_images()
    guide = TeacherGuide([teacher()], TASK, real)
    assert guide.enough == pytest.approx(guide(real.images.float() / 127.5 - 1, real.labels).item(), rel=1e-5)
    assert TeacherGuide([teacher()], TASK).enough is None


def test_statistics_of_real_images_are_nearer_than_those_of_noise() -> None:
    network = Brightness().train()
    real = real_images().images.float() / 255
    for _ in range(200):
        network(NORMALIZE(real))
    guide, labels = TeacherGuide([teacher(network)], TASK, statistics=1.0), torch.arange(40) % 2
    without = TeacherGuide([teacher(network)], TASK)
    of_real, of_noise = (guide(x, labels) - without(x, labels) for x in (2 * real - 1, torch.randn(40, 1, 8, 8)))
    assert of_real < 1e-2 < of_noise


def test_the_distance_to_a_norm_is_its_formula() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0, 9.0]))
    values = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    mean, std = values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3), unbiased=False).sqrt()
    expected = ((mean - norm.running_mean) ** 2 / norm.running_var + (std / norm.running_var.sqrt() - 1) ** 2).mean()
    assert distance_to_norm(values, norm).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_network_without_batch_norms_cannot_compare_statistics() -> None:
    with pytest.raises(ValueError, match="no batch norms .*statistics: 0"):
        batch_norms(nn.Linear(2, 2))


def test_a_teacher_at_chance_level_does_not_guide() -> None:
    with pytest.raises(ValueError, match="reads real at chance level"):
        TeacherGuide([teacher(Brightness(sign=0.0))], TASK, real_images(400))
    with pytest.raises(ValueError, match="reads real at chance level"):
        TeacherGuide([teacher(), teacher(Brightness(sign=-1.0))], TASK, real_images())


def test_a_teacher_of_another_task_or_other_classes_does_not_guide() -> None:
    scalars = Regression(label_min=0.0, label_max=1.0, mean=0.5, std=0.5)
    with pytest.raises(ValueError, match="trained for regression, the task is classification"):
        TeacherGuide([teacher(Brightness(1), task=scalars)], TASK)
    with pytest.raises(ValueError, match="answers 8 images with"):
        TeacherGuide([teacher(Brightness(1))], TASK, real_images())
    with pytest.raises(ValueError, match="dark"):
        TeacherGuide([teacher(task=Classification(("cat", "dog")))], TASK)


def test_maps_are_those_of_the_stages_for_images_as_a_generator_draws_them() -> None:
    network = build_model("small_resnet", num_classes=2, in_channels=1, widths=(4, 6, 8)).eval()
    images = torch.rand(2, 1, 16, 16).mul(2).sub(1).requires_grad_()
    found = NetworkMaps(teacher(network), (1, 16, 16))(images)
    assert [tuple(each.shape[1:]) for each in found] == [(4, 16, 16), (6, 8, 8), (8, 4, 4)]
    (gradient,) = torch.autograd.grad(sum(each.sum() for each in found), images)
    assert gradient.isfinite().all()


def test_a_network_for_larger_images_sees_them_enlarged() -> None:
    network = build_model("torchvision:resnet18", num_classes=2)
    normalize = Normalize(torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))
    maps = NetworkMaps(Teacher(network, normalize, image_size=64), (3, 16, 16), ["layer1", "layer2"])
    assert [tuple(each.shape[1:]) for each in maps(torch.zeros(1, 3, 16, 16))] == [(64, 16, 16), (128, 8, 8)]


def test_a_path_that_is_no_map_is_named() -> None:
    network = build_model("small_resnet", num_classes=2, in_channels=1, widths=(4, 6))
    with pytest.raises(ValueError, match=r"'.*' of SmallResNet is \[2\].*name other modules"):
        NetworkMaps(teacher(network), (1, 16, 16), [[name for name, _ in network.named_modules()][-1]])


def test_a_helped_generator_trains_and_the_teacher_comes_back_as_it_was() -> None:
    real, own = real_images(), teacher(build_model("small_resnet", num_classes=2, in_channels=1, widths=(4, 6)))
    before = {name: value.clone() for name, value in own.module.state_dict().items()}
    generators.train(
        real.images,
        real.labels,
        num_classes=2,
        features=NetworkMaps(own, (1, 8, 8)),
        guide=TeacherGuide([own], TASK, statistics=0.1),
        widths=(8, 8),
        discriminator_widths=(8,),
        latent_dim=4,
        label_dim=8,
        steps=2,
        batch_size=8,
    )
    assert all(torch.equal(before[name], value) for name, value in own.module.state_dict().items())
