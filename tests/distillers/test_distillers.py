"""The laws that every distillation method keeps, on every task that it declares, and what each one computes."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import gankd
from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import Batch, BatchSource
from gankd.data.sets import ImageSet
from gankd.distillers import METHODS, Distiller, MethodConfig
from gankd.models import SmallResNet
from gankd.tasks import Classification, Regression, Task, task_of
from gankd.teacher import Normalize, Teacher
from gankd.training import TrainingConfig, fit

TASKS: dict[str, Task] = {
    "classification": Classification(class_names=("a", "b", "c")),
    "regression": Regression(label_min=0, label_max=4, mean=2, std=1.5, unit="years"),
}
CASES = [(name, task) for name, method in METHODS.items() for task in sorted(method.tasks & TASKS.keys())]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)


def network(kind: str, seed: int, widths: tuple[int, ...] = (4, 8)) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallResNet(TASKS[kind].num_outputs, in_channels=1, widths=widths)


def fixed_batch(kind: str, size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % 3
    return Batch(
        images=torch.randint(256, (size, 1, 8, 8), generator=generator, dtype=torch.uint8),
        labels=labels if kind == "classification" else 2.0 * labels,
        indices=torch.arange(size),
        is_synthetic=torch.arange(size) >= size // 2,
    )


def make(
    name: str,
    kind: str,
    config: MethodConfig | None = None,
    *,
    augmentation: AugmentationConfig | None = None,
    teacher_seed: int = 1,
) -> tuple[Distiller, Teacher]:
    method, images = METHODS[name], fixed_batch(kind).images
    normalize = Normalize.of(images)
    teacher = Teacher(network(kind, teacher_seed, widths=(8,)), normalize)
    distiller = method(
        network(kind, 0),
        teacher if method.needs_teacher else None,
        TASKS[kind],
        config or method.Config(),
        augment=Augment(augmentation or AugmentationConfig()),
        normalize=normalize,
    )
    return distiller, teacher


# --- laws of every method ---------------------------------------------------------------------------------------------


@every_case
def test_the_loss_falls_on_a_batch_that_stays_the_same(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    optimizer = torch.optim.Adam([p for p in distiller.parameters() if p.requires_grad], lr=5e-3)
    batch, losses = fixed_batch(kind), []
    for _ in range(20):
        terms = distiller(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.9 * losses[0]


@every_case
@pytest.mark.parametrize("size", [2, 5])
def test_every_term_is_a_finite_scalar_and_the_total_reaches_the_whole_student(name, kind, size: int) -> None:
    distiller, _ = make(name, kind)
    terms = distiller(fixed_batch(kind, size))
    assert "loss" in terms and len(terms) > 1
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    terms["loss"].backward()
    for parameter_name, parameter in distiller.student.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {parameter_name}"
        assert parameter.grad.isfinite().all()


@every_case
def test_a_batch_of_identical_images_is_finite(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    batch = fixed_batch(kind, 4)
    batch.images[:] = batch.images[:1].clone()
    terms = distiller(batch)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


@every_case
def test_the_order_of_the_batch_does_not_matter(name: str, kind: str) -> None:
    batch, order = fixed_batch(kind), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = Batch(
        images=batch.images[order],
        labels=batch.labels[order],
        indices=batch.indices[order],
        is_synthetic=batch.is_synthetic[order],
    )
    distiller, _ = make(name, kind)
    torch.testing.assert_close(distiller(shuffled)["loss"], distiller(batch)["loss"], rtol=1e-4, atol=1e-5)


@every_case
def test_the_loss_is_finite_and_in_full_precision_inside_autocast(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = distiller(fixed_batch(kind))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    full = distiller(fixed_batch(kind))
    assert terms["loss"].item() == pytest.approx(full["loss"].item(), rel=0.1, abs=0.02)


@every_case
def test_what_is_deployed_is_the_plain_student(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    distiller(fixed_batch(kind))["loss"].backward()
    plain = network(kind, 0)
    assert list(distiller.deployable().state_dict()) == list(plain.state_dict())
    plain.load_state_dict(distiller.deployable().state_dict())
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(plain.eval()(images), distiller.deployable().eval()(images))


@every_case
def test_the_teacher_is_neither_trained_nor_stored_nor_put_in_training_mode(name: str, kind: str) -> None:
    distiller, teacher = make(name, kind, augmentation=AugmentationConfig(rotation=10, cutout=0.2))
    before = {key: value.clone() for key, value in teacher.module.state_dict().items()}
    mine = {id(tensor) for tensor in (*teacher.module.parameters(), *teacher.module.buffers())}
    assert not mine & {id(tensor) for tensor in (*distiller.parameters(), *distiller.buffers())}
    assert not any("teacher" in key for key in distiller.state_dict())

    dataset = ImageSet(fixed_batch(kind).images, fixed_batch(kind).labels)
    config = TrainingConfig(steps=3, batch_size=6, log_every=1)
    fit(distiller, BatchSource(dataset, batch_size=6), config, accelerator=Accelerator(), seed=0)
    after = teacher.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module.training for module in teacher.module.modules())
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


@every_case
def test_images_are_augmented_in_training_only(name: str, kind: str) -> None:
    distiller, _ = make(name, kind, augmentation=AugmentationConfig(rotation=90, cutout=0.5))
    batch = fixed_batch(kind)
    for normalisation in distiller.student.modules():  # so that nothing but the augmentation depends on the mode
        if isinstance(normalisation, nn.BatchNorm2d):
            normalisation.momentum = 0.0
    losses = [distiller(batch)["loss"].item() for _ in range(3)]
    assert len(set(losses)) == 3
    distiller.eval()
    losses = [distiller(batch)["loss"].item() for _ in range(3)]
    assert len(set(losses)) == 1


@every_case
def test_the_same_draws_give_the_same_loss(name: str, kind: str) -> None:
    losses = []
    for _ in range(2):
        distiller, _ = make(name, kind, augmentation=AugmentationConfig(rotation=90, cutout=0.5))
        torch.manual_seed(3)
        losses.append(distiller(fixed_batch(kind))["loss"].item())
    assert losses[0] == losses[1]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_task_that_a_method_does_not_declare_is_refused_before_anything_is_built(name: str) -> None:
    method = METHODS[name]
    undefined = {"classification", "regression", "representation"} - method.tasks
    assert undefined, "a method for everything needs no check"
    for kind in undefined:
        with pytest.raises(ValueError, match=f"method {name} is not defined for {kind}; it does "):
            method.check(kind, has_teacher=True)
    for kind in method.tasks:
        method.check(kind, has_teacher=True)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teacher])
def test_a_method_that_needs_a_teacher_says_so(name: str) -> None:
    images = fixed_batch("classification").images
    with pytest.raises(ValueError, match=f"method {name} needs a teacher; give one, or use method supervised"):
        METHODS[name](
            network("classification", 0),
            None,
            TASKS["classification"],
            METHODS[name].Config(),
            augment=Augment(AugmentationConfig()),
            normalize=Normalize.of(images),
        )


def test_every_method_is_found_under_the_name_of_its_settings() -> None:
    for name, method in METHODS.items():
        assert method.Config().name == name
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
