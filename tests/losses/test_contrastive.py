"""Contrastive representation distillation, its embedding and its banks against their equations, and the draw by its laws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gankd.losses import crd_loss, nce_loss
from gankd.methods.memory_bank import MemoryBank, PositiveSets
from tests.golden.adapters import crd_update_bank, embed_and_normalize


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def unit_rows(rng: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=rng, dtype=torch.float64), dim=1)


def case(rng: torch.Generator, *, n_data: int, batch: int = 4, negatives: int = 5, width: int = 6) -> dict[str, Tensor]:
    banks = [(2 * torch.rand(n_data, width, generator=rng).double() - 1) * (3 / width) ** 0.5 for _ in range(2)]
    return {
        "student_embedding": unit_rows(rng, batch, width),
        "teacher_embedding": unit_rows(rng, batch, width),
        "student_bank": banks[0],
        "teacher_bank": banks[1],
        "contrast_indices": torch.randint(n_data, (batch, negatives + 1), generator=rng),
    }


# --- the loss ---------------------------------------------------------------------------------------------------------


def nce_by_loops(probabilities: list[list[float]], n_data: int) -> float:
    noise = (len(probabilities[0]) - 1) / n_data
    total = 0.0
    for positive, *negatives in probabilities:
        total -= math.log(positive / (positive + noise + 1e-7))
        total -= sum(math.log(noise / (negative + noise + 1e-7)) for negative in negatives)
    return total / len(probabilities)


def crd_by_loops(arguments: dict[str, Tensor], temperature: float) -> tuple[float, float, float]:
    values = {name: tensor.tolist() for name, tensor in arguments.items()}
    total, normalisers = 0.0, []
    for embedding, bank in [("student_embedding", "teacher_bank"), ("teacher_embedding", "student_bank")]:
        scores = [
            [
                math.exp(sum(a * b for a, b in zip(v, values[bank][place], strict=True)) / temperature)
                for place in places
            ]
            for v, places in zip(values[embedding], values["contrast_indices"], strict=True)
        ]
        flat = [score for row in scores for score in row]
        n_data = len(values[bank])
        normaliser = n_data * sum(flat) / len(flat)
        total += nce_by_loops([[score / normaliser for score in row] for row in scores], n_data)
        normalisers.append(normaliser)
    return total, *normalisers


def test_nce_sums_over_negatives_and_averages_over_the_batch(rng: torch.Generator) -> None:
    probabilities = torch.rand(3, 5, generator=rng, dtype=torch.float64)
    expected = nce_by_loops(probabilities.tolist(), 40)
    assert nce_loss(probabilities=probabilities, n_data=40).item() == pytest.approx(expected, rel=1e-12)


def test_nce_gradient(rng: torch.Generator) -> None:
    probabilities = (torch.rand(2, 4, generator=rng, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: nce_loss(probabilities=p, n_data=7), probabilities)


def test_nce_of_impossible_negatives_keeps_its_gradient() -> None:
    probabilities = torch.tensor([[0.5, 0.0, 0.0]], requires_grad=True)
    nce_loss(probabilities=probabilities, n_data=4).backward()
    noise = 2 / 4 + 1e-7
    torch.testing.assert_close(
        probabilities.grad, torch.tensor([[-noise / (0.5 * (0.5 + noise)), 1 / noise, 1 / noise]])
    )


@pytest.mark.parametrize("n_data", [12, 2000], ids=["product with the bank", "gather of rows"])
def test_crd_contrasts_each_side_with_the_other_sides_bank(rng: torch.Generator, n_data: int) -> None:
    arguments = case(rng, n_data=n_data)
    values = crd_loss(**arguments, temperature=0.3)
    assert [value.item() for value in values] == pytest.approx(crd_by_loops(arguments, 0.3), rel=1e-12)


@pytest.mark.parametrize("n_data", [12, 2000], ids=["product with the bank", "gather of rows"])
def test_crd_gradient_reaches_both_embeddings_and_nothing_else(rng: torch.Generator, n_data: int) -> None:
    arguments = case(rng, n_data=n_data)
    constants = {"z_student": torch.tensor(90.0), "z_teacher": 70.0}
    leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items() if name != "contrast_indices"}
    constants["z_student"].requires_grad_()
    loss, z_student, z_teacher = crd_loss(**arguments, **constants, temperature=0.3)
    loss.backward()
    assert leaves["student_bank"].grad is leaves["teacher_bank"].grad is constants["z_student"].grad is None
    assert not z_student.requires_grad and not z_teacher.requires_grad

    def by_embeddings(student: Tensor, teacher: Tensor) -> Tensor:
        changed = {**arguments, "student_embedding": student, "teacher_embedding": teacher}
        return crd_loss(**changed, z_student=90.0, z_teacher=70.0, temperature=0.3)[0]

    inputs = [arguments[name].detach().requires_grad_() for name in ("student_embedding", "teacher_embedding")]
    assert torch.autograd.gradcheck(by_embeddings, inputs)


def test_crd_treats_estimated_normalisers_as_constants(rng: torch.Generator) -> None:
    arguments = case(rng, n_data=12)
    student = arguments["student_embedding"].requires_grad_()
    estimated, z_student, z_teacher = crd_loss(**arguments)
    given, *passed_on = crd_loss(**arguments, z_student=z_student, z_teacher=z_teacher.item())
    assert [value.item() for value in passed_on] == [z_student.item(), z_teacher.item()]
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (estimated, given)))


def test_crd_is_the_nce_of_both_sides(rng: torch.Generator) -> None:
    arguments = case(rng, n_data=12)
    loss, *normalisers = crd_loss(**arguments, temperature=0.2)
    sides = [("student_embedding", "teacher_bank"), ("teacher_embedding", "student_bank")]
    total = 0.0
    for (embedding, bank), z in zip(sides, normalisers, strict=True):
        rows = arguments[bank][arguments["contrast_indices"]]  # [N, K + 1, D]
        scores = torch.exp((rows * arguments[embedding][:, None]).sum(2) / 0.2)
        total += nce_loss(probabilities=scores / z, n_data=12)
    torch.testing.assert_close(loss, total)


def test_crd_ignores_a_common_rotation_and_the_order_of_batch_and_negatives(rng: torch.Generator) -> None:
    arguments = case(rng, n_data=12)
    loss = crd_loss(**arguments)[0]
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64)).Q
    ids = arguments["contrast_indices"]
    rotated = {name: tensor @ rotation for name, tensor in arguments.items() if name != "contrast_indices"}
    torch.testing.assert_close(crd_loss(**rotated, contrast_indices=ids)[0], loss)
    turned = {name: arguments[name].flip(0) for name in ("student_embedding", "teacher_embedding")}
    turned["contrast_indices"] = torch.cat([ids[:, :1], ids[:, 1:].flip(1)], dim=1).flip(0)
    torch.testing.assert_close(crd_loss(**{**arguments, **turned})[0], loss)


def test_crd_stays_finite_where_probabilities_leave_float32(rng: torch.Generator) -> None:
    """One normaliser for scores between exp(-100) and exp(100)."""
    axis = torch.eye(3)[:1]
    bank = torch.cat([-axis, axis, axis])
    student, teacher = axis.clone().requires_grad_(), axis.clone().requires_grad_()
    loss, *_ = crd_loss(
        student_embedding=student,
        teacher_embedding=teacher,
        student_bank=bank,
        teacher_bank=bank,
        contrast_indices=torch.tensor([[0, 1, 2]]),
        temperature=0.01,
        z_student=1.0,
        z_teacher=1.0,
    )
    loss.backward()
    # a side: positive log((2/3) / e^-100), two negatives log(e^100 / (2/3)), up to 1e-7
    assert loss.item() == pytest.approx(2 * (300 + (1 - 2) * math.log(2 / 3)), rel=1e-5)
    torch.testing.assert_close(student.grad, torch.tensor([[300.0, 0.0, 0.0]]))  # (1 + 2) / T
    torch.testing.assert_close(teacher.grad, student.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_crd_takes_half_precision_and_autocast(rng: torch.Generator, dtype: torch.dtype) -> None:
    arguments = case(rng, n_data=50, width=32)
    halves = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in arguments.items()}
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in halves.items()}
    expected = crd_loss(**floats)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = crd_loss(**halves)
    for value, wanted in zip(values, expected, strict=True):
        assert value.dtype == torch.float32 and value.shape == ()
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_crd_contrasts_inside_a_batch_and_against_a_queue(rng: torch.Generator) -> None:
    """Samples without a place in a bank: the banks are the batch, then a queue. Agreement costs less than confusion."""
    student, teacher, queue = unit_rows(rng, 4, 16), unit_rows(rng, 4, 16), unit_rows(rng, 5, 16)
    ids = PositiveSets(torch.arange(9), None).draw(torch.arange(4), num_negatives=8)

    def loss(s: Tensor, t: Tensor) -> float:
        banks = {"student_bank": torch.cat([s, queue]), "teacher_bank": torch.cat([t, queue])}
        return crd_loss(student_embedding=s, teacher_embedding=t, **banks, contrast_indices=ids)[0].item()

    assert loss(teacher, teacher) < loss(student, teacher)
    assert loss(teacher, teacher) < loss(teacher.roll(1, 0), teacher)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_embedding": torch.zeros(4, 5)}, r"\[4, 6\] and \[4, 5\]"),
        ({"student_bank": torch.zeros(12, 5)}, r"\[n_data, 6\], not \[12, 5\] and \[12, 6\]"),
        ({"contrast_indices": torch.zeros(3, 6, dtype=torch.int64)}, "3 rows of contrast ids for 4 embeddings"),
        ({"contrast_indices": torch.zeros(4, 1, dtype=torch.int64)}, r"one negative a sample, .* not \[4, 1\]"),
    ],
)
def test_crd_refuses_what_does_not_fit(rng: torch.Generator, change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crd_loss(**{**case(rng, n_data=12), **change})


# --- the embedding ----------------------------------------------------------------------------------------------------


def test_an_embedding_is_a_unit_vector_along_the_affine_map(rng: torch.Generator) -> None:
    feature = torch.randn(3, 2, 2, 2, generator=rng, dtype=torch.float64)
    weight, bias = torch.randn(5, 8, generator=rng).double(), torch.randn(5, generator=rng).double()
    embedding = embed_and_normalize(feature=feature, weight=weight, bias=bias)
    mapped = feature.flatten(1) @ weight.T + bias
    torch.testing.assert_close(embedding, mapped / mapped.square().sum(1, keepdim=True).sqrt())
    torch.testing.assert_close(embed_and_normalize(feature=feature, weight=3 * weight, bias=3 * bias), embedding)


def test_an_embedding_is_computed_in_float32(rng: torch.Generator) -> None:
    feature, weight, bias = torch.randn(3, 8, generator=rng), torch.randn(5, 8, generator=rng), torch.zeros(5)
    wanted = embed_and_normalize(feature=feature.bfloat16().float(), weight=weight, bias=bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = embed_and_normalize(feature=feature.bfloat16(), weight=weight, bias=bias)
    torch.testing.assert_close(embedding, wanted, rtol=0, atol=0)


def test_a_dead_feature_has_a_finite_embedding() -> None:
    embedding = embed_and_normalize(feature=torch.zeros(2, 8), weight=torch.ones(5, 8), bias=torch.zeros(5))
    torch.testing.assert_close(embedding, torch.zeros(2, 5))


# --- the bank ---------------------------------------------------------------------------------------------------------


def test_a_new_bank_has_rows_of_expected_square_norm_one() -> None:
    torch.manual_seed(0)
    bank = MemoryBank.of_directions(2000, 48).rows
    assert bank.abs().max() <= 1 / math.sqrt(48 / 3)
    assert bank.square().sum(1).mean().item() == pytest.approx(1, abs=0.01)
    assert bank.mean().abs() < 0.002


def test_an_update_moves_the_rows_of_the_batch(rng: torch.Generator) -> None:
    bank, embedding = unit_rows(rng, 6, 4), unit_rows(rng, 2, 4).requires_grad_()
    before, ids = bank.clone(), torch.tensor([4, 1])
    updated = crd_update_bank(bank=bank, embedding=embedding, indices=ids, momentum=0.8)
    assert not updated.requires_grad
    torch.testing.assert_close(bank, before, rtol=0, atol=0)
    for place, row in enumerate(updated):
        if place in ids:
            mixed = 0.8 * bank[place] + 0.2 * embedding.detach()[ids.tolist().index(place)]
            torch.testing.assert_close(row, mixed / mixed.square().sum().sqrt())
        else:
            torch.testing.assert_close(row, bank[place], rtol=0, atol=0)


def test_the_last_of_repeated_ids_counts(rng: torch.Generator) -> None:
    bank, embedding = unit_rows(rng, 6, 4), unit_rows(rng, 4, 4)
    repeated = crd_update_bank(bank=bank, embedding=embedding, indices=torch.tensor([3, 0, 3, 5]))
    once = crd_update_bank(bank=bank, embedding=embedding[1:], indices=torch.tensor([0, 3, 5]))
    torch.testing.assert_close(repeated, once, rtol=0, atol=0)


def test_a_half_precision_embedding_updates_a_float32_bank(rng: torch.Generator) -> None:
    bank, embedding = unit_rows(rng, 6, 4).float(), unit_rows(rng, 2, 4).half()
    updated = crd_update_bank(bank=bank, embedding=embedding, indices=torch.tensor([0, 1]))
    assert updated.dtype == torch.float32
    torch.testing.assert_close(updated[:2], F.normalize((bank[:2] + embedding.float()) / 2))


def test_an_update_refuses_embeddings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"2 rows of a bank \[6, 4\] cannot take values \[2, 3\]"):
        crd_update_bank(bank=torch.zeros(6, 4), embedding=torch.zeros(2, 3), indices=torch.tensor([0, 1]))


def test_a_bank_that_overwrites_keeps_the_values_in_its_own_precision_and_a_queue_the_latest(
    rng: torch.Generator,
) -> None:
    bank, values = MemoryBank(torch.zeros(4, dtype=torch.float16)), torch.rand(3, generator=rng)
    bank.write(torch.tensor([3, 1, 3]), values)
    torch.testing.assert_close(bank.rows, torch.stack([values[0] * 0, values[1], values[0] * 0, values[2]]).half())
    bank.push(values)
    torch.testing.assert_close(bank.rows[:3], values.half())
    assert bank.rows[3] == 0


# --- the draw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_negatives", [3, 7, 11], ids=["fewer than the pool", "all but one", "more than the pool"])
def test_a_draw_is_uniform_over_the_pool_in_unbalanced_classes(num_negatives: int) -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1, 2, 0, 1, 3])  # five samples of class 0, one of class 3
    torch.manual_seed(0)
    draws, sets = 4000, PositiveSets(labels, None)
    ids = torch.cat([sets.draw(torch.tensor([0]), num_negatives=num_negatives, mode="relax") for _ in range(draws)])
    pool, alike = (labels != 0).nonzero().flatten(), (labels == 0).nonzero().flatten()
    negatives = ids[:, 1:].flatten().bincount(minlength=12)
    expected = draws * num_negatives / len(pool)
    assert ((negatives[pool] - expected).abs() < 6 * math.sqrt(expected)).all()
    positives = ids[:, 0].bincount(minlength=12)
    assert ((positives[alike] - draws / len(alike)).abs() < 6 * math.sqrt(draws / len(alike))).all()


def test_a_draw_depends_on_the_default_generator_alone() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return PositiveSets(torch.arange(50) % 5, None).draw(torch.arange(8), num_negatives=9, mode="relax")

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_unique_labels_contrast_every_other_sample() -> None:
    ids = PositiveSets(torch.arange(6), None).draw(torch.tensor([4]), num_negatives=5)
    assert ids[0, 0] == 4
    assert sorted(ids[0, 1:].tolist()) == [0, 1, 2, 3, 5]


def test_a_scalar_target_contrasts_what_lies_farther_than_kappa() -> None:
    labels = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])  # a difference of exactly kappa is alike
    ids = PositiveSets(labels, 0.25).draw(torch.tensor([1]), num_negatives=2)
    assert sorted(ids[0, 1:].tolist()) == [3, 4]


def test_small_integers_are_scalars_too() -> None:
    """Ages as uint8, whose differences would wrap."""
    labels = torch.tensor([3, 5, 200], dtype=torch.uint8)
    assert PositiveSets(labels, 4).draw(torch.tensor([0, 1]), num_negatives=1).tolist() == [[0, 2], [1, 2]]
