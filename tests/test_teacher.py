"""A teacher is asked, never trained: frozen, in evaluation mode, with its own normalisation and its features by path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gankd.data.sets import LazyImages
from gankd.models import SmallResNet, build_model
from gankd.models.inputs import Normalize, remember
from gankd.models.teacher import Teacher
from gankd.tasks import Regression


def images(count: int = 5, channels: int = 1, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def teacher(**keywords) -> Teacher:
    torch.manual_seed(0)
    return Teacher(SmallResNet(3, in_channels=1, widths=(4, 8)), Normalize.of(images()), **keywords)


# --- normalisation ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]))
def test_normalised_images_have_zero_mean_and_unit_variance_a_channel(seed: int, channels: int) -> None:
    random = torch.Generator().manual_seed(seed)
    spread = torch.tensor([100, 150, 255])[:channels].view(1, -1, 1, 1)
    pixels = (torch.rand(6, channels, 5, 5, generator=random) * spread).to(torch.uint8)
    normalised = Normalize.of(pixels)(pixels.float() / 255).double()
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(channels).double(), atol=1e-4, rtol=0)
    variance = normalised.var(dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(variance, torch.ones(channels).double(), atol=1e-3, rtol=0)


def test_statistics_of_a_large_set_come_from_an_even_sample() -> None:
    pixels = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    assert Normalize.of(pixels, sample=2).mean.item() == pytest.approx(49.5 / 255)  # the first and the last
    lazy = LazyImages(lambda index: pixels[index], (100, 1, 1, 1))
    assert torch.equal(Normalize.of(lazy).mean, Normalize.of(pixels).mean)


def test_a_constant_channel_stays_finite() -> None:
    pixels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    assert Normalize.of(pixels)(pixels.float()).isfinite().all()


def test_the_teacher_normalises_its_own_input() -> None:
    module = nn.Flatten()
    asked = Teacher(module, Normalize(torch.tensor([0.5]), torch.tensor([0.25])))
    torch.testing.assert_close(asked(torch.full((1, 1, 1, 2), 0.75)), torch.tensor([[1.0, 1.0]]))


def test_normalisation_is_no_weight() -> None:
    assert Normalize.of(images()).state_dict() == {}


# --- frozen -----------------------------------------------------------------------------------------------------------


def test_a_teacher_is_frozen_in_evaluation_mode_and_carries_no_gradient() -> None:
    asked = teacher()
    assert not any(module.training for module in asked.module.modules())
    assert not any(parameter.requires_grad for parameter in asked.module.parameters())
    view = (images().float() / 255).requires_grad_()
    outputs, features = asked.outputs_and_features(view)
    assert not outputs.requires_grad and not features.requires_grad and not asked(view).requires_grad


def test_asking_changes_neither_weights_nor_buffers_and_an_answer_depends_on_its_image_alone() -> None:
    asked, view = teacher(), images().float() / 255
    before = {key: value.clone() for key, value in asked.module.state_dict().items()}
    together = asked(view)
    torch.testing.assert_close(torch.cat([asked(view[index : index + 1]) for index in range(5)]), together)
    assert all(torch.equal(before[key], value) for key, value in asked.module.state_dict().items())


def test_whoever_holds_a_teacher_does_not_own_its_weights() -> None:
    holder = nn.Linear(1, 1)
    holder.teacher = teacher()
    assert set(holder.state_dict()) == {"weight", "bias"}
    holder.train()
    assert not any(module.training for module in holder.teacher.module.modules())


@pytest.mark.parametrize("with_own", [True, False])
def test_a_teacher_answers_in_the_units_of_whoever_asked_last(with_own: bool) -> None:
    """One teacher serves several students; what it was asked to do for one must not stay for the next."""
    own = Regression(label_min=0, label_max=4, mean=3.5, std=0.25)
    asked = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), Normalize.of(images()), task=own)
    view, student = images().float() / 255, Regression(label_min=0, label_max=4, mean=2.0, std=1.5)
    answers = asked(view)
    torch.testing.assert_close(asked.for_task(student)(view), (3.5 + 0.25 * answers - 2.0) / 1.5)
    third = own if with_own else Regression(label_min=0, label_max=4, mean=1.0, std=2.0)
    expected = answers if with_own else (3.5 + 0.25 * answers - 1.0) / 2.0
    torch.testing.assert_close(asked.for_task(third)(view), expected)


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    asked, view = teacher(), images().float() / 255
    outputs, features = asked.outputs_and_features(view)
    assert features.shape == (5, 8)
    assert torch.equal(outputs, asked(view))
    torch.testing.assert_close(asked.module.head(features), outputs)


def test_features_may_be_tapped_at_any_module_and_are_averaged_over_space() -> None:
    asked, view = teacher(feature_path="stages.0"), images().float() / 255
    _, features = asked.outputs_and_features(view)
    module = asked.module
    expected = module.stages[0](module.stem(asked.normalize(view))).mean(dim=(2, 3))
    torch.testing.assert_close(features, expected)


def test_a_tap_at_a_pooled_module_is_taken_as_it_is() -> None:
    view = images().float() / 255
    assert torch.equal(
        teacher(feature_path="pool").outputs_and_features(view)[1], teacher().outputs_and_features(view)[1]
    )


@pytest.mark.parametrize("feature_path", [None, "stages"])
def test_hooks_are_removed_also_when_the_network_fails(feature_path: str | None) -> None:
    asked = teacher(feature_path=feature_path)
    hooks = lambda: sum(  # noqa: E731
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in asked.module.modules()
    )
    asked.outputs_and_features(images().float() / 255)
    with pytest.raises(RuntimeError):
        asked.outputs_and_features(torch.zeros(1, 2, 8, 8))
    assert hooks() == 0


def test_a_network_without_a_linear_layer_asks_for_a_path() -> None:
    asked = Teacher(nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()), nn.Identity())
    with pytest.raises(ValueError, match="Sequential has no linear layer; name the teacher's feature_path"):
        asked.outputs_and_features(torch.zeros(1, 1, 8, 8))
    asked.feature_path = "0"
    assert asked.outputs_and_features(torch.zeros(1, 1, 8, 8))[1].shape == (1, 2)


def test_an_unknown_path_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"stages\.9.*stages\.[01]"):
        teacher(feature_path="stages.9").outputs_and_features(images().float() / 255)


def test_a_last_linear_layer_that_is_not_used_is_named() -> None:
    class WithSpareHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.spare = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    with pytest.raises(ValueError, match="feature_path"):
        Teacher(WithSpareHead(), nn.Identity()).outputs_and_features(torch.zeros(3, 1, 2, 2))


def test_features_of_a_network_from_torchvision() -> None:
    asked = Teacher(build_model("torchvision:squeezenet1_0", num_classes=4), nn.Identity(), feature_path="features")
    outputs, features = asked.outputs_and_features(torch.rand(2, 3, 32, 32))
    assert outputs.shape == (2, 4) and features.shape == (2, 512)


def test_features_are_named_like_taps() -> None:
    """R3: one way to read features; what `teacher_taps` takes, `feature_path` takes."""
    asked, view = teacher(feature_path="head:input"), images().float() / 255
    outputs, features = asked.outputs_and_features(view)
    expected = teacher().outputs_and_features(view)
    assert torch.equal(outputs, expected[0]) and torch.equal(features, expected[1])
    _, (first,) = asked.outputs_and_taps(view, ["stages.1:input"])
    asked.feature_path = "stages.1:input"
    torch.testing.assert_close(asked.outputs_and_features(view)[1], first.mean(dim=(2, 3)))


# --- networks as people have them (G) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_teacher_of_another_precision_answers_in_single(dtype: torch.dtype) -> None:
    view = images().float() / 255
    expected = teacher().outputs_and_features(view)
    module = teacher().module.to(dtype)
    asked = Teacher(module, Normalize.of(images()))
    outputs, features = asked.outputs_and_features(view)
    if dtype != torch.float64:
        assert outputs.dtype == features.dtype == asked(view).dtype == torch.float32
    torch.testing.assert_close((outputs.float(), features.float()), expected, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_teacher_answers_and_says_that_its_features_cannot_be_read() -> None:
    view = images().float() / 255
    expected = teacher()(view)
    asked = Teacher(torch.jit.trace(teacher().module, view), Normalize.of(images()))
    torch.testing.assert_close(asked(view), expected)
    with pytest.raises(ValueError, match="scripted network does not let its features be read"):
        asked.outputs_and_features(view)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_teacher_answers() -> None:
    view = images().float() / 255
    module = torch.ao.quantization.quantize_dynamic(teacher().module, {nn.Linear}, dtype=torch.qint8)
    torch.testing.assert_close(Teacher(module, Normalize.of(images()))(view), teacher()(view), rtol=0.05, atol=0.05)


def test_a_network_that_knows_itself_needs_no_more() -> None:
    """F12: normalisation and units as `remember` left them."""
    module, task = teacher().module, Regression(label_min=0, label_max=4, mean=3.5, std=0.25)
    remember(module, Normalize.of(images()), task)
    asked, view = Teacher(module), images().float() / 255
    assert asked.task == task and torch.equal(asked(view), teacher()(view))


# --- whole sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5, 512])
def test_a_set_in_chunks_gives_what_the_whole_gives(batch_size: int) -> None:
    asked, pixels = teacher(), images()
    whole = asked(pixels.float() / 255)
    torch.testing.assert_close(asked.map(pixels, asked, batch_size=batch_size), whole)
    lazy = LazyImages(lambda index: pixels[index], tuple(pixels.shape))
    torch.testing.assert_close(asked.map(lazy, asked, batch_size=batch_size), whole)
    assert asked.map(pixels, asked).device.type == "cpu"
