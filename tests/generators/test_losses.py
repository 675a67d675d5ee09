"""Adversarial losses, regularisers and the spectral norm against their equations."""

from __future__ import annotations

import math

import pytest
import torch

from generators.layers import spectral_normalize
from generators.losses import (
    hard_vicinal_discriminator_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    mode_seeking_loss,
    nonsaturating_discriminator_loss,
    nonsaturating_generator_loss,
    orthogonal_regularisation_gradient,
    r1_penalty,
    soft_vicinal_discriminator_loss,
    vicinal_generator_loss,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


REAL_LOSS = {"hinge": lambda d: max(0.0, 1 - d), "vanilla": lambda d: -math.log(sigmoid(d))}
FAKE_LOSS = {"hinge": lambda d: max(0.0, 1 + d), "vanilla": lambda d: -math.log(1 - sigmoid(d))}
GENERATOR_LOSS = {"hinge": lambda d: -d, "vanilla": lambda d: -math.log(sigmoid(d))}
DISCRIMINATOR = {"hinge": hinge_discriminator_loss, "vanilla": nonsaturating_discriminator_loss}
GENERATOR = {"hinge": hinge_generator_loss, "vanilla": nonsaturating_generator_loss}
both_losses = pytest.mark.parametrize("loss", ["hinge", "vanilla"])


def as_tuple(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- discriminator and generator losses -------------------------------------------------------------------------------


@both_losses
def test_discriminator_averages_each_source_on_its_own(rng: torch.Generator, loss: str) -> None:
    real, fake = normal(rng, 7), normal(rng, 4, 1)
    real_term = mean([REAL_LOSS[loss](d) for d in real.tolist()])
    fake_term = mean([FAKE_LOSS[loss](d) for d in fake.flatten().tolist()])
    values = [value.item() for value in DISCRIMINATOR[loss](real_logits=real, fake_logits=fake)]
    assert values == pytest.approx([real_term + fake_term, real_term, fake_term], rel=1e-12)
    hard = hard_vicinal_discriminator_loss(real_logits=real, fake_logits=fake, loss=loss)
    assert hard.item() == pytest.approx(real_term + fake_term, rel=1e-12)


@both_losses
def test_generator_loss(rng: torch.Generator, loss: str) -> None:
    fake = normal(rng, 6, 1)
    expected = mean([GENERATOR_LOSS[loss](d) for d in fake.flatten().tolist()])
    assert GENERATOR[loss](fake_logits=fake).item() == pytest.approx(expected, rel=1e-12)
    assert vicinal_generator_loss(fake_logits=fake, loss=loss).item() == pytest.approx(expected, rel=1e-12)


@both_losses
@pytest.mark.parametrize("logit_shape", [(5,), (5, 1)])
def test_soft_vicinal_loss_weighs_samples_by_their_label(rng: torch.Generator, loss: str, logit_shape: tuple) -> None:
    real, fake = normal(rng, *logit_shape), normal(rng, *logit_shape)
    labels = torch.rand(3, 5, generator=rng, dtype=torch.float64)
    real_labels, fake_labels, targets = labels.tolist()
    rows = list(zip(real.flatten().tolist(), fake.flatten().tolist(), real_labels, fake_labels, targets, strict=True))
    expected = mean([math.exp(-20 * (y - t) ** 2) * REAL_LOSS[loss](d) for d, _, y, _, t in rows])
    expected += mean([math.exp(-20 * (y - t) ** 2) * FAKE_LOSS[loss](d) for _, d, _, y, t in rows])
    value = soft_vicinal_discriminator_loss(
        real_logits=real,
        fake_logits=fake,
        real_labels=labels[0],
        fake_labels=labels[1],
        target_labels=labels[2],
        kappa=20.0,
        loss=loss,
    )
    assert value.item() == pytest.approx(expected, rel=1e-12)


@both_losses
def test_soft_vicinal_loss_on_target_is_the_hard_one(rng: torch.Generator, loss: str) -> None:
    real, fake, labels = normal(rng, 5), normal(rng, 5), torch.rand(5, generator=rng)
    soft = soft_vicinal_discriminator_loss(
        real_logits=real,
        fake_logits=fake,
        real_labels=labels,
        fake_labels=labels,
        target_labels=labels,
        kappa=1e4,
        loss=loss,
    )
    torch.testing.assert_close(soft, hard_vicinal_discriminator_loss(real_logits=real, fake_logits=fake, loss=loss))


@both_losses
def test_gradients(rng: torch.Generator, loss: str) -> None:
    real, fake = normal(rng, 5).requires_grad_(), normal(rng, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, f: DISCRIMINATOR[loss](real_logits=r, fake_logits=f), (real, fake))
    assert torch.autograd.gradcheck(lambda f: GENERATOR[loss](fake_logits=f), fake)


@both_losses
def test_order_of_the_batch_does_not_matter(rng: torch.Generator, loss: str) -> None:
    real, fake, order = normal(rng, 6), normal(rng, 6), torch.randperm(6, generator=rng)
    torch.testing.assert_close(
        DISCRIMINATOR[loss](real_logits=real[order], fake_logits=fake[order]),
        DISCRIMINATOR[loss](real_logits=real, fake_logits=fake),
    )


@both_losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_losses(rng: torch.Generator, loss: str, dtype: torch.dtype) -> None:
    real, fake = normal(rng, 6).to(dtype), normal(rng, 6).to(dtype)
    for loss_function, logits in [
        (DISCRIMINATOR[loss], {"real_logits": real, "fake_logits": fake}),
        (GENERATOR[loss], {"fake_logits": fake}),
    ]:
        got = torch.stack(as_tuple(loss_function(**logits)))
        wanted = torch.stack(as_tuple(loss_function(**{name: value.float() for name, value in logits.items()})))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted)


def test_vanilla_loss_of_a_sure_and_wrong_discriminator_is_finite_and_still_teaches() -> None:
    real = torch.tensor([-500.0], requires_grad=True)
    fake = torch.tensor([500.0], requires_grad=True)
    total, _, _ = nonsaturating_discriminator_loss(real_logits=real, fake_logits=fake)
    total.backward()
    assert total.item() == 1000
    assert (real.grad.item(), fake.grad.item()) == (-1, 1)


def test_unknown_loss_names_the_known_ones() -> None:
    logits = torch.zeros(2)
    with pytest.raises(ValueError, match="'wasserstein': use 'hinge' or 'vanilla'"):
        hard_vicinal_discriminator_loss(real_logits=logits, fake_logits=logits, loss="wasserstein")
    with pytest.raises(ValueError, match="'wasserstein': use 'hinge' or 'vanilla'"):
        vicinal_generator_loss(fake_logits=logits, loss="wasserstein")


def test_soft_vicinal_loss_refuses_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="one fake logit, fake label and target label per sample, got 3, 4 and 4"):
        soft_vicinal_discriminator_loss(
            real_logits=torch.zeros(4),
            fake_logits=torch.zeros(3),
            real_labels=torch.zeros(4),
            fake_labels=torch.zeros(4),
            target_labels=torch.zeros(4),
            kappa=1.0,
        )


# --- r1_penalty -------------------------------------------------------------------------------------------------------


def test_r1_of_a_quadratic_discriminator(rng: torch.Generator) -> None:
    images = normal(rng, 4, 2, 3, 3).requires_grad_()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    logits = scale * images.square().sum(dim=(1, 2, 3)) / 2  # gradient: scale * x
    penalty = r1_penalty(real_logits=logits[:, None], real_images=images)
    mean_square = images.square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(penalty, scale**2 * mean_square)
    (gradient,) = torch.autograd.grad(penalty, scale)  # reaches the discriminator's parameters
    torch.testing.assert_close(gradient, 2 * scale * mean_square)


def test_r1_averages_over_samples(rng: torch.Generator) -> None:
    images, direction = normal(rng, 5, 1, 2, 2).requires_grad_(), normal(rng, 1, 2, 2)
    penalty = r1_penalty(real_logits=(images * direction).sum(dim=(1, 2, 3)), real_images=images)
    torch.testing.assert_close(penalty, direction.square().sum())  # whatever N is


def test_r1_says_how_to_make_images_require_a_gradient() -> None:
    with pytest.raises(ValueError, match=r"real_images.requires_grad_\(\)"):
        r1_penalty(real_logits=torch.zeros(2), real_images=torch.zeros(2, 1, 2, 2))


# --- mode_seeking_loss ------------------------------------------------------------------------------------------------


def test_mode_seeking_is_the_inverse_ratio_of_distances(rng: torch.Generator) -> None:
    first, second = normal(rng, 3, 1, 4, 4).requires_grad_(), normal(rng, 3, 1, 4, 4)
    first_latents, second_latents = normal(rng, 3, 5), normal(rng, 3, 5)

    def loss(first: torch.Tensor) -> torch.Tensor:
        return mode_seeking_loss(
            first_images=first, second_images=second, first_latents=first_latents, second_latents=second_latents
        )

    expected = mean(
        [
            1 / ((a - b).abs().mean().item() / (u - v).abs().mean().item() + 1e-5)
            for a, b, u, v in zip(first, second, first_latents, second_latents, strict=True)
        ]
    )
    assert loss(first).item() == pytest.approx(expected, rel=1e-10)
    assert torch.autograd.gradcheck(loss, first)


def test_mode_seeking_of_a_collapsed_generator_is_one_over_eps(rng: torch.Generator) -> None:
    images = torch.zeros(3, 1, 4, 4)
    latents = torch.randn(2, 3, 5, generator=rng)
    loss = mode_seeking_loss(
        first_images=images, second_images=images, first_latents=latents[0], second_latents=latents[1]
    )
    assert loss.item() == pytest.approx(1e5, rel=1e-5)


def test_mode_seeking_of_equal_latents_is_zero_with_zero_gradient() -> None:
    images, latents = torch.zeros(2, 1, 4, 4, requires_grad=True), torch.ones(2, 5)
    loss = mode_seeking_loss(
        first_images=images, second_images=images * 1, first_latents=latents, second_latents=latents
    )
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(images.grad, torch.zeros_like(images))


def test_mode_seeking_takes_half_precision(rng: torch.Generator) -> None:
    first, second = normal(rng, 3, 1, 4, 4).half(), normal(rng, 3, 1, 4, 4).half()
    latents = torch.randn(2, 3, 5, generator=rng)
    results = [
        mode_seeking_loss(first_images=a, second_images=b, first_latents=latents[0], second_latents=latents[1])
        for a, b in [(first, second), (first.float(), second.float())]
    ]
    assert results[0].dtype == torch.float32
    torch.testing.assert_close(*results)


# --- orthogonal_regularisation_gradient -------------------------------------------------------------------------------


def test_orthogonal_gradient_is_half_that_of_the_off_diagonal_penalty(rng: torch.Generator) -> None:
    weight = normal(rng, 4, 3, 2, 2).requires_grad_()
    matrix = weight.reshape(4, -1)
    gram = matrix @ matrix.T
    penalty = sum(gram[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    (gradient,) = torch.autograd.grad(1e-2 * penalty, weight)
    torch.testing.assert_close(orthogonal_regularisation_gradient(weight=weight, strength=1e-2), gradient / 2)


def test_orthogonal_rows_are_left_alone(rng: torch.Generator) -> None:
    rows = torch.linalg.qr(normal(rng, 6, 6)).Q[:3] * torch.tensor([[1.0], [2.0], [3.0]])
    gradient = orthogonal_regularisation_gradient(weight=rows, strength=1.0)
    torch.testing.assert_close(gradient, torch.zeros_like(rows), atol=1e-12, rtol=0)


def test_orthogonal_gradient_ignores_autocast(rng: torch.Generator) -> None:
    weight = torch.randn(4, 6, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = orthogonal_regularisation_gradient(weight=weight, strength=1.0)
    torch.testing.assert_close(inside, orthogonal_regularisation_gradient(weight=weight, strength=1.0), rtol=0, atol=0)


# --- spectral_normalize -----------------------------------------------------------------------------------------------


def test_power_iterations_converge_to_spectral_norm_one(rng: torch.Generator) -> None:
    weight, u = normal(rng, 5, 3, 2, 2), normal(rng, 1, 5)
    for _ in range(200):
        normalised, u, sigma = spectral_normalize(weight, u)
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(weight.flatten(1), 2))
    assert normalised.shape == weight.shape
    assert torch.linalg.matrix_norm(normalised.flatten(1), 2).item() == pytest.approx(1)
    assert u.norm().item() == pytest.approx(1)


def test_spectral_normalisation_ignores_autocast(rng: torch.Generator) -> None:
    weight, u = torch.randn(4, 6, generator=rng), torch.randn(1, 4, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = spectral_normalize(weight, u)
    torch.testing.assert_close(inside, spectral_normalize(weight, u), rtol=0, atol=0)


def test_spectral_gradient_holds_the_singular_vectors_fixed(rng: torch.Generator) -> None:
    weight, u, probe = normal(rng, 4, 6).requires_grad_(), normal(rng, 1, 4), normal(rng, 4, 6)
    normalised, new_u, sigma = spectral_normalize(weight, u)
    (gradient,) = torch.autograd.grad((normalised * probe).sum(), weight)
    v = u @ weight.detach()
    outer = new_u.T @ (v / v.norm())  # d sigma / d W with u', v constant
    expected = probe / sigma - (weight * probe).sum() / sigma**2 * outer
    torch.testing.assert_close(gradient, expected.detach())
    assert not new_u.requires_grad
