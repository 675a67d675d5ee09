"""The published feature extractors: shapes at every image size, the loss as in the paper, and that training trains them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gankd.data.sets import LazyImages
from gankd.synthesis.extractors import SparseAutoencoder, WideClassifier, sparse_autoencoder_loss, train_extractor


def pixels(count: int, channels: int = 1, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def in_generator_range(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (32, 1), (64, 1)])
def test_an_autoencoders_features_are_as_many_as_pixels_not_negative_and_lead_back(size: int, channels: int) -> None:
    torch.manual_seed(0)
    autoencoder = SparseAutoencoder((channels, size, size), width=4)
    images = in_generator_range(pixels(3, channels, size))
    features = autoencoder(images)
    assert features.shape == (3, channels * size * size)
    assert (features >= 0).all() and (features > 0).any()
    reconstructions = autoencoder.decoder(features)
    assert reconstructions.shape == images.shape
    assert reconstructions.abs().max() <= 1
    assert autoencoder.predictor(features).shape == (3, 1)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3)])
def test_a_classifiers_features_are_as_many_as_pixels_without_an_activation(size: int, channels: int) -> None:
    torch.manual_seed(0)
    classifier = WideClassifier((channels, size, size), num_classes=5)
    features = classifier(in_generator_range(pixels(3, channels, size)))
    assert features.shape == (3, channels * size * size)
    assert (features < 0).any()
    assert classifier.head(features).shape == (3, 5)


def test_an_image_size_that_does_not_halve_to_four_is_refused() -> None:
    with pytest.raises(ValueError, match="28"):
        SparseAutoencoder((1, 28, 28))


@pytest.mark.parametrize("make", [lambda: SparseAutoencoder((1, 8, 8), width=4), lambda: WideClassifier((1, 8, 8), 3)])
def test_features_of_an_image_in_evaluation_mode_depend_on_that_image_alone(make) -> None:
    torch.manual_seed(0)
    extractor, images = make().eval(), in_generator_range(pixels(4))
    torch.testing.assert_close(extractor(images)[1:2], extractor(images[1:2]), rtol=1e-4, atol=1e-5)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trailing", [(), (1,)])
def test_the_autoencoders_loss_is_the_equation(trailing: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    reconstructions, images, features = draw(4, 2, 3, 3), draw(4, 2, 3, 3), draw(4, 18)
    predictions, labels = draw(4, *trailing), draw(4)
    found = sparse_autoencoder_loss(
        reconstructions=reconstructions,
        images=images,
        features=features,
        predictions=predictions,
        labels=labels,
        sparsity_weight=0.25,
        regression_weight=3.0,
    )
    reconstruction = (reconstructions.double() - images.double()).square().sum() / (4 * 2 * 3 * 3)
    sparsity = features.double().sum() / (4 * 18)
    regression = (predictions.double().view(4) - labels.double()).square().sum() / 4
    assert found.shape == ()
    assert found.item() == pytest.approx((reconstruction + 0.25 * sparsity + 3 * regression).item(), rel=1e-6)


def test_a_perfect_autoencoder_costs_its_features_only() -> None:
    images, features, labels = torch.rand(4, 1, 2, 2), torch.full((4, 4), 0.5), torch.rand(4)
    found = sparse_autoencoder_loss(
        reconstructions=images,
        images=images,
        features=features,
        predictions=labels,
        labels=labels,
        sparsity_weight=1e-3,
        regression_weight=1.0,
    )
    assert found.item() == pytest.approx(5e-4)


# --- training ---------------------------------------------------------------------------------------------------------


def train(extractor, steps: int, images=None, labels: Tensor | None = None) -> tuple[object, list[dict]]:
    logged: list[dict] = []
    images = pixels(32) if images is None else images
    labels = torch.linspace(0, 1, 32) if labels is None else labels
    features = train_extractor(extractor, images, labels, steps=steps, batch_size=16, log=logged.append)
    return features, logged


def test_training_lowers_the_loss_and_freezes_the_extractor() -> None:
    torch.manual_seed(0)
    autoencoder = SparseAutoencoder((1, 8, 8), width=8)
    images, labels = in_generator_range(pixels(32)), torch.linspace(0, 1, 32)
    before = autoencoder.loss(images, labels).item()
    train(autoencoder, steps=60)
    assert autoencoder.loss(images, labels).item() < 0.9 * before
    assert not any(module.training for module in autoencoder.modules())
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())


def test_lazily_read_images_train_the_same_extractor() -> None:
    states = []
    for lazy in (False, True):
        torch.manual_seed(0)
        autoencoder, images = SparseAutoencoder((1, 8, 8), width=4), pixels(32)
        if lazy:
            images = LazyImages(images.__getitem__, tuple(images.shape))
        train(autoencoder, steps=3, images=images)
        states.append(autoencoder.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_classifier_learns_classes() -> None:
    torch.manual_seed(0)
    images, labels = pixels(16), (torch.arange(16) >= 8).long()
    images[8:] //= 8  # dark
    classifier = WideClassifier((1, 8, 8), num_classes=2)

    def loss() -> float:
        torch.manual_seed(9)  # of dropout
        classifier.train()
        return sum(classifier.loss(in_generator_range(images), labels).item() for _ in range(3))

    before = loss()
    train(classifier, steps=6, images=images, labels=labels)
    assert loss() < 0.7 * before
