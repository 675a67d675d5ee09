"""The learned temperature of CTKD and the joint class-rotation losses of HSAKD against their equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gankd.losses import (
    ctkd_loss,
    ctkd_temperature,
    curriculum_strength,
    gradient_reversal,
    hsakd_mutual_loss,
    hsakd_student_loss,
    hsakd_teacher_loss,
    joint_to_class_logits,
    kd_loss,
    rotation_batch,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# --- CTKD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_reversal_changes_the_gradient_and_nothing_else(rng: torch.Generator, strength: float) -> None:
    leaf, direction = normal(rng, 3, 2).requires_grad_(), normal(rng, 3, 2)
    output = gradient_reversal(input=leaf, strength=strength)
    torch.testing.assert_close(output, leaf, rtol=0, atol=0)
    (output * direction).sum().backward()
    torch.testing.assert_close(leaf.grad, -strength * direction)


def test_reversal_leaves_its_input_usable_elsewhere(rng: torch.Generator) -> None:
    leaf = normal(rng, 3).requires_grad_()
    (gradient_reversal(input=leaf, strength=1.0) + 3 * leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.full_like(leaf, 2.0))


@pytest.mark.parametrize("shape", [(1,), (5, 1)])
def test_temperature_lies_in_its_range(rng: torch.Generator, shape: tuple[int, ...]) -> None:
    parameter = 10 * normal(rng, *shape)
    temperature = ctkd_temperature(parameter=parameter, strength=1.0, temperature_min=2.0, temperature_range=5.0)
    torch.testing.assert_close(temperature, 2 + 5 / (1 + torch.exp(-parameter)))
    assert ((temperature >= 2) & (temperature <= 7)).all()


def test_temperature_starts_at_15_6() -> None:
    assert ctkd_temperature(parameter=torch.ones(1), strength=0.0).item() == pytest.approx(15.62, abs=0.005)


@pytest.mark.parametrize("shape", [(1,), (6, 1)], ids=["one temperature", "one a sample"])
def test_ctkd_is_kd_at_the_learned_temperature_with_a_reversed_gradient(rng: torch.Generator, shape) -> None:
    student, teacher = (3 * normal(rng, 6, 4)).requires_grad_(), (3 * normal(rng, 6, 4)).requires_grad_()
    parameter = normal(rng, *shape).requires_grad_()
    temperature = 1 + 20 * torch.sigmoid(parameter)
    plain = kd_loss(student_logits=student, teacher_logits=teacher, temperature=temperature)
    loss = ctkd_loss(student_logits=student, teacher_logits=teacher, temperature_parameter=parameter, strength=0.4)
    assert loss.shape == ()
    torch.testing.assert_close(loss, plain)
    wanted = torch.autograd.grad(plain, [student, parameter])
    got = torch.autograd.grad(loss, [student, parameter, teacher], allow_unused=True)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], -0.4 * wanted[1])
    assert got[2] is None


def test_the_temperatures_gradient_has_all_three_sources(rng: torch.Generator) -> None:
    """Finite differences of a loss by loops, in which T moves both softmaxes and the factor T^2."""
    student, teacher = (3 * normal(rng, 4, 3)).tolist(), (3 * normal(rng, 4, 3)).tolist()

    def by_loops(parameter: float) -> float:
        temperature = 1 + 20 / (1 + math.exp(-parameter))
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            q, p = ([math.exp(z / temperature) for z in row] for row in (s, t))
            total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        return temperature**2 * total / 4

    leaf = torch.tensor([-1.5], dtype=torch.float64, requires_grad=True)
    ctkd_loss(
        student_logits=torch.tensor(student, dtype=torch.float64),
        teacher_logits=torch.tensor(teacher, dtype=torch.float64),
        temperature_parameter=leaf,
        strength=1.0,
    ).backward()
    slope = (by_loops(-1.5 + 1e-5) - by_loops(-1.5 - 1e-5)) / 2e-5
    assert leaf.grad.item() == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ctkd_takes_half_precision(rng: torch.Generator, dtype: torch.dtype) -> None:
    student, teacher = (8 * normal(rng, 6, 4)).to(dtype), (8 * normal(rng, 6, 4)).to(dtype)
    parameter = torch.ones(1, dtype=dtype, requires_grad=True)
    arguments = {"temperature_parameter": parameter, "strength": 1.0}
    loss = ctkd_loss(student_logits=student, teacher_logits=teacher, **arguments)
    loss.backward()
    assert loss.dtype == torch.float32 and parameter.grad.dtype == dtype
    torch.testing.assert_close(
        loss, ctkd_loss(student_logits=student.float(), teacher_logits=teacher.float(), **arguments)
    )


def test_curriculum_rises_from_easy_to_full_strength() -> None:
    cosine = [curriculum_strength(epoch=epoch) for epoch in range(14)]
    assert cosine[0] == 0
    assert [round(cosine[epoch], 3) for epoch in (1, 2, 5, 9)] == [0.024, 0.095, 0.5, 0.976]
    assert cosine[10:] == [1.0] * 4
    assert cosine == sorted(cosine)
    linear = [curriculum_strength(epoch=epoch, num_epochs=4, schedule="linear") for epoch in range(6)]
    assert linear == [0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_no_curriculum_means_full_strength_at_once(schedule: str) -> None:
    assert curriculum_strength(epoch=1, num_epochs=0, schedule=schedule) == 1.0


def test_curriculum_and_reversal_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="'step': use 'cosine' or 'linear'"):
        curriculum_strength(epoch=1, schedule="step")
    with pytest.raises(ValueError, match="epoch -1 of a curriculum of 10 epochs"):
        curriculum_strength(epoch=-1)
    with pytest.raises(ValueError, match="-0.5 would not reverse"):
        gradient_reversal(input=torch.ones(1), strength=-0.5)


# --- HSAKD ------------------------------------------------------------------------------------------------------------


def test_rotations_turn_counter_clockwise_and_keep_the_views_of_an_image_together() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    images = torch.stack([image, 10 * image])[:, None]  # [2, 1, 2, 2]
    rotated, joint = rotation_batch(images=images, labels=torch.tensor([5, 0]))
    turns = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert rotated[:4, 0].tolist() == turns
    assert rotated[4:, 0].tolist() == (10 * torch.tensor(turns)).tolist()
    assert joint.tolist() == [20, 21, 22, 23, 0, 1, 2, 3]


def test_joint_labels_of_small_integers_do_not_wrap() -> None:
    labels = torch.tensor([200], dtype=torch.uint8)
    assert rotation_batch(images=torch.zeros(1, 1, 2, 2), labels=labels)[1].tolist() == [800, 801, 802, 803]


def test_rotations_refuse_images_that_are_not_square() -> None:
    with pytest.raises(ValueError, match="square images, not 2 x 3"):
        rotation_batch(images=torch.zeros(1, 1, 2, 3), labels=torch.zeros(1, dtype=torch.int64))


def outputs(rng: torch.Generator, *, images: int, classes: int, transforms: int = 4, stages: int = 2):
    rows = transforms * images
    return normal(rng, rows, classes), [normal(rng, rows, transforms * classes) for _ in range(stages)]


def cross_entropy(row: Tensor, label: int) -> float:
    return math.log(sum(math.exp(z - row[label].item()) for z in row.tolist()))


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for k in range(len(s)):
            log_p, log_q = -cross_entropy(t / temperature, k), -cross_entropy(s / temperature, k)
            total += math.exp(log_p) * (log_p - log_q)
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("transforms", [1, 2, 4])
@pytest.mark.parametrize(("images", "classes"), [(1, 2), (3, 5)])
def test_teacher_learns_classes_upright_and_joint_labels_everywhere(
    rng: torch.Generator, images: int, classes: int, transforms: int
) -> None:
    logits, auxiliary = outputs(rng, images=images, classes=classes, transforms=transforms)
    labels = torch.randint(classes, (images,), generator=rng)
    total, task, joint = hsakd_teacher_loss(logits=logits, auxiliary_logits=auxiliary, labels=labels)
    wanted_task = wanted_joint = 0.0
    for image, label in enumerate(labels.tolist()):
        wanted_task += cross_entropy(logits[transforms * image], label) / images
        for turn in range(transforms):
            row = transforms * image + turn
            for stage in auxiliary:
                wanted_joint += cross_entropy(stage[row], transforms * label + turn) / (transforms * images)
    assert task.item() == pytest.approx(wanted_task)
    assert joint.item() == pytest.approx(wanted_joint)
    assert total.item() == pytest.approx(wanted_task + wanted_joint)


def test_student_follows_every_distribution_of_the_teacher(rng: torch.Generator) -> None:
    student, student_stages = outputs(rng, images=2, classes=3)
    teacher, teacher_stages = outputs(rng, images=2, classes=3)
    labels = torch.tensor([2, 0])
    values = hsakd_student_loss(
        student_logits=student,
        student_auxiliary_logits=student_stages,
        teacher_logits=teacher,
        teacher_auxiliary_logits=teacher_stages,
        labels=labels,
        temperature=2.0,
    )
    task = (cross_entropy(student[0], 2) + cross_entropy(student[4], 0)) / 2
    kd = divergence(student, teacher, 2.0)
    auxiliary = sum(divergence(s, t, 2.0) for s, t in zip(student_stages, teacher_stages, strict=True))
    assert [value.item() for value in values] == pytest.approx([task + kd + auxiliary, task, kd, auxiliary])


def test_a_student_equal_to_its_teacher_has_only_the_task_left(rng: torch.Generator) -> None:
    logits, stages = outputs(rng, images=2, classes=3)
    total, task, kd, auxiliary = hsakd_student_loss(
        student_logits=logits,
        student_auxiliary_logits=stages,
        teacher_logits=logits.clone(),
        teacher_auxiliary_logits=stages,
        labels=torch.tensor([2, 0]),
    )
    assert kd.item() == pytest.approx(0, abs=1e-14) and auxiliary.item() == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(total, task)


def test_no_gradient_reaches_the_teacher(rng: torch.Generator) -> None:
    student, student_stages = outputs(rng, images=2, classes=3)
    teacher, teacher_stages = outputs(rng, images=2, classes=3)
    everything = [student, *student_stages, teacher, *teacher_stages]
    for tensor in everything:
        tensor.requires_grad_()
    hsakd_student_loss(
        student_logits=student,
        student_auxiliary_logits=student_stages,
        teacher_logits=teacher,
        teacher_auxiliary_logits=teacher_stages,
        labels=torch.tensor([2, 0]),
    )[0].backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in everything[:3])
    assert all(tensor.grad is None for tensor in everything[3:])


def test_mutual_learning_is_each_peers_teaching_and_the_others_distributions_detached(rng: torch.Generator) -> None:
    logits, stages = zip(*(outputs(rng, images=2, classes=3) for _ in range(2)), strict=True)
    labels = torch.tensor([1, 2])
    for tensor in (*logits, *stages[0], *stages[1]):
        tensor.requires_grad_()
    total, cross_entropies, divergences = hsakd_mutual_loss(logits=logits, auxiliary_logits=stages, labels=labels)
    taught, followed = 0.0, 0.0
    for me, other in [(0, 1), (1, 0)]:
        taught += hsakd_teacher_loss(logits=logits[me], auxiliary_logits=stages[me], labels=labels)[0]
        followed += sum(
            kd_loss(student_logits=s, teacher_logits=t.detach(), temperature=3.0)
            for s, t in zip([logits[me], *stages[me]], [logits[other], *stages[other]], strict=True)
        )
    torch.testing.assert_close(cross_entropies, taught)
    torch.testing.assert_close(divergences, followed)
    torch.testing.assert_close(total, taught + followed)
    leaves = [*logits, *stages[0], *stages[1]]
    torch.testing.assert_close(
        torch.autograd.grad(total, leaves, retain_graph=True), torch.autograd.grad(taught + followed, leaves)
    )
    swapped = hsakd_mutual_loss(logits=logits[::-1], auxiliary_logits=stages[::-1], labels=labels)[0]
    torch.testing.assert_close(swapped, total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_the_float32_result(rng: torch.Generator, dtype: torch.dtype) -> None:
    logits, stages = outputs(rng, images=2, classes=3)
    halves = (20 * logits).to(dtype), [(20 * stage).to(dtype) for stage in stages]
    labels = torch.tensor([1, 2])
    values = hsakd_teacher_loss(logits=halves[0], auxiliary_logits=halves[1], labels=labels)
    wanted = hsakd_teacher_loss(
        logits=halves[0].float(), auxiliary_logits=[stage.float() for stage in halves[1]], labels=labels
    )
    assert all(value.dtype == torch.float32 for value in values)
    torch.testing.assert_close(values, wanted)


def test_a_class_logit_sums_its_joint_logits() -> None:
    joint = torch.tensor([[1.0, 2, 3, 4, 50, 60, 70, 80]])
    assert joint_to_class_logits(joint_logits=joint).tolist() == [[10, 260]]
    assert joint_to_class_logits(joint_logits=joint, num_transforms=2).tolist() == [[3, 7, 110, 150]]
    with pytest.raises(ValueError, match="8 joint logits cannot be classes times 3 transforms"):
        joint_to_class_logits(joint_logits=joint, num_transforms=3)


def test_networks_with_other_stages_or_shapes_are_refused(rng: torch.Generator) -> None:
    logits, stages = outputs(rng, images=2, classes=3)
    labels = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="2 and 1 auxiliary classifiers"):
        hsakd_student_loss(
            student_logits=logits,
            student_auxiliary_logits=stages,
            teacher_logits=logits,
            teacher_auxiliary_logits=stages[:1],
            labels=labels,
        )
    with pytest.raises(ValueError, match="8 rows of logits are no multiple of 3 labels"):
        hsakd_teacher_loss(logits=logits, auxiliary_logits=stages, labels=torch.tensor([1, 2, 0]))
    with pytest.raises(ValueError, match=r"stage 1 have shape \[8, 11\], not \[8, 12\]"):
        hsakd_teacher_loss(logits=logits, auxiliary_logits=[stages[0], stages[1][:, :11]], labels=labels)
    with pytest.raises(ValueError, match="an auxiliary classifier at one stage at least"):
        hsakd_teacher_loss(logits=logits, auxiliary_logits=[], labels=labels)
    with pytest.raises(ValueError, match="takes two peers, not 3"):
        hsakd_mutual_loss(logits=[logits] * 3, auxiliary_logits=[stages] * 3, labels=labels)
