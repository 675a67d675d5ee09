"""What every method refuses, and what knowledge distillation computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gankd
from gankd.data.augment import AugmentationConfig
from gankd.data.loader import Batch
from gankd.data.sets import ImageSet
from gankd.methods import METHODS, Distiller
from gankd.models.inputs import Normalize
from gankd.tasks import Regression, task_of
from tests.methods.common import CASES, STUDENT, TASKS, fixed_batch, image_sets, make, network

# --- refusals ---------------------------------------------------------------------------------------------------------


HEADS = {"scalar", "bins", "gaussian"}


@pytest.mark.parametrize("name", METHODS)
def test_a_task_that_a_method_does_not_declare_is_refused_before_anything_is_built(name: str) -> None:
    method = METHODS[name]
    undefined = {"classification", "regression", "representation"} - method.tasks
    for kind in undefined:
        with pytest.raises(ValueError, match=f"method {name} is not defined for {kind}; it does "):
            method.check(kind, has_teacher=True)
    if "classification" in method.tasks:
        method.check("classification", has_teacher=True)
    if "regression" in method.tasks:
        for head in HEADS - method.heads:
            with pytest.raises(ValueError, match=f"method {name} is not defined for task.head: {head}; it takes "):
                method.check("regression", has_teacher=True, head=head)
        for head in method.heads:
            method.check("regression", has_teacher=True, head=head)


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if METHODS[case[0]].needs_teacher])
def test_a_method_that_needs_a_teacher_says_so(name: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"method {name} needs a teacher; give one, or use method supervised"):
        gankd.distill(network(kind, 0), real=image_sets(fixed_batch(kind))[0], method=name, steps=1)


@pytest.mark.parametrize(
    "settings",
    [{"name": "sp", "weight": 0}, {"name": "combined", "terms": ["fsp"]}],
    ids=["no weight", "no second stage"],
)
def test_a_training_without_any_loss_is_refused(settings: dict) -> None:
    networks = [network("classification", seed, STUDENT) for seed in range(2)]
    with pytest.raises(ValueError, match="neither task_weight nor the weight of a term is above 0"):
        gankd.distill(
            *networks, real=image_sets(fixed_batch("classification"))[0], method=settings | {"task_weight": 0}, steps=1
        )


def test_every_method_is_found_under_the_name_of_its_settings() -> None:
    for name, method in METHODS.items():
        assert method.Config.model_fields["name"].default == name and method.Config.method is method
        assert method.tasks <= {"classification", "regression", "representation"} and method.tasks
        assert method.__doc__ and method.Config.__doc__


# --- knowledge distillation -------------------------------------------------------------------------------------------


def outputs_of(distiller: Distiller, batch: Batch) -> tuple[Tensor, Tensor]:
    """Student's and teacher's outputs on the un-augmented images; both modes of the student's batch norm are its own."""
    view = batch.images.float() / 255
    return distiller.student(distiller.normalize(view)).double(), distiller.teacher(view).double()


@pytest.mark.parametrize("kind", TASKS)
def test_kd_without_weight_on_the_teacher_is_supervised_training(kind: str) -> None:
    batch = fixed_batch(kind)
    distiller, _ = make("kd", kind, METHODS["kd"].Config(alpha=0))
    plain, _ = make("supervised", kind)
    terms, expected = distiller(batch), plain(batch)
    assert set(terms) == {"loss", "task"}, "a term of weight 0 is not computed"
    assert torch.equal(terms["loss"], expected["loss"])
    terms["loss"].backward()
    expected["loss"].backward()
    for one, other in zip(distiller.student.parameters(), plain.student.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_kd_with_all_weight_on_the_teacher_does_not_look_at_the_labels() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("kd", "classification", METHODS["kd"].Config(alpha=1))
    terms = distiller(batch)
    assert set(terms) == {"loss", "kd"}
    batch.labels[:] = 0
    assert torch.equal(distiller(batch)["loss"], terms["loss"])


@pytest.mark.parametrize(("alpha", "temperature"), [(0.9, 4.0), (0.3, 1.0)])
def test_kd_on_classes_equals_the_equation(alpha: float, temperature: float) -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("kd", "classification", METHODS["kd"].Config(alpha=alpha, temperature=temperature))
    student, teacher = outputs_of(distiller, batch)
    p, q = (torch.softmax(logits / temperature, dim=1) for logits in (teacher, student))
    kd = temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean()
    task = -torch.log_softmax(student, dim=1)[torch.arange(12), batch.labels].mean()
    terms = distiller(batch)
    assert terms["kd"].item() == pytest.approx(kd.item(), rel=1e-4)
    assert terms["task"].item() == pytest.approx(task.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(((1 - alpha) * task + alpha * kd).item(), rel=1e-4)


@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
def test_kd_on_scalars_equals_the_equation_in_standardised_units(loss: str) -> None:
    batch = fixed_batch("regression")
    distiller, _ = make("kd", "regression", METHODS["kd"].Config(alpha=0.25, loss=loss))
    student, teacher = (outputs.flatten() for outputs in outputs_of(distiller, batch))
    residual = (student - teacher).abs()
    kd = {
        "l2": residual**2,
        "l1": residual,
        "huber": torch.where(residual <= 1, residual**2 / 2, residual - 0.5),
    }[loss].mean()
    task = (student - (batch.labels.double() - 2) / 1.5).square().mean()
    terms = distiller(batch)
    assert terms["kd"].item() == pytest.approx(kd.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx((0.75 * task + 0.25 * kd).item(), rel=1e-4)


def test_kd_on_scalars_with_all_weight_on_the_teacher_is_training_on_its_answers_as_labels() -> None:
    """The squared error to the teacher is cGAN-KD's label replacement, done in the loss."""
    batch = fixed_batch("regression")
    distiller, teacher = make("kd", "regression", METHODS["kd"].Config(alpha=1, loss="l2"))
    plain, _ = make("supervised", "regression")
    answers = 2 + 1.5 * teacher(batch.images.float() / 255).flatten()
    relabelled = Batch(batch.images, answers, batch.indices, batch.is_synthetic)
    assert distiller(batch)["loss"].item() == pytest.approx(plain(relabelled)["loss"].item(), rel=1e-4)


@pytest.mark.parametrize("kind", TASKS)
def test_student_and_teacher_see_the_same_view(kind: str) -> None:
    """With a student equal to its teacher nothing is left to distil, however hard the images are changed."""
    distiller, teacher = make(
        "kd", kind, METHODS["kd"].Config(alpha=1), augmentation=AugmentationConfig(rotation=180, cutout=0.5, scale=0.5)
    )
    distiller.student = teacher.module
    distiller.train()
    distiller.student.eval()
    assert distiller(fixed_batch(kind))["loss"].item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_other_label_statistics_is_understood_in_its_own_units() -> None:
    """A teacher of all data and a student of few standardise by different numbers; what they mean are the same years."""
    batch, logged = fixed_batch("regression"), []
    dataset = ImageSet(batch.images, batch.labels)
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)) for _ in range(2))
    for module in (teacher, student):
        nn.init.zeros_(module[1].weight)
        nn.init.zeros_(module[1].bias)
    teacher.output_task = Regression(label_min=0, label_max=4, mean=3.5, std=0.25)  # as gankd leaves it on a network
    task = task_of(dataset)
    gankd.distill(student, teacher, real=dataset, method={"name": "kd", "alpha": 1}, steps=1, log=logged.append)
    # the student says its mean, the teacher 3.5 years
    assert logged[0]["kd"] == pytest.approx(((3.5 - task.mean) / task.std) ** 2, rel=1e-4)


def test_the_teacher_normalises_the_view_in_its_own_way() -> None:
    batch = fixed_batch("classification")
    distiller, teacher = make("kd", "classification", METHODS["kd"].Config(alpha=1))
    before = distiller(batch)["kd"]
    teacher.normalize = Normalize(torch.tensor([0.1]), torch.tensor([2.0]))
    assert not torch.equal(distiller(batch)["kd"], before)
