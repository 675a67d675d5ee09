"""What `evaluate` says of a network: right for labels of any magnitude, and never a number of outputs that are none."""

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import gankd
from gankd.data.sets import ImageSet
from gankd.evaluation import knn_regress, network_metrics
from gankd.models.inputs import Normalize
from gankd.tasks import Classification, Regression, task_of

IDENTITY = Normalize(torch.zeros(1), torch.ones(1))


class Answers(nn.Module):
    """Says of image i, whose pixels are i, what stands at i."""

    def __init__(self, outputs: Tensor):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("outputs", outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs[(images[:, 0, 0, 0] * 255).round().long()]


def numbered(labels: Tensor) -> ImageSet:
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return ImageSet(images.contiguous(), labels, name="numbered")


def found(outputs: Tensor, task, data: ImageSet) -> dict[str, float]:
    return network_metrics(Answers(outputs), IDENTITY, task, data, accelerator=Accelerator(cpu=True), batch_size=16)


@pytest.mark.parametrize(("offset", "scale"), [(20_000, 1), (0, 1e-9), (0, 1e30), (-5e5, 10), (0, 1)])
@pytest.mark.parametrize("raw", [False, True])
def test_r2_and_errors_are_right_for_labels_of_any_magnitude_f8_f24(offset, scale, raw):
    """Labels 20000 +- 1 with noise as predictions gave an R2 of .959 (truth -.5), those of the order 1e-9 one of 1.00."""
    generator = torch.Generator().manual_seed(0)
    labels = (offset + scale * torch.randn(200, generator=generator, dtype=torch.float64)).float()
    wide = Regression(label_min=offset - 99 * scale, label_max=offset + 99 * scale, mean=offset, std=scale)
    if raw:  # a network that answers in the labels' own units
        wide = Regression(label_min=offset - 99 * scale, label_max=offset + 99 * scale)
    noise = (wide.mean + wide.std * torch.randn(200, generator=generator)) if not raw else labels.roll(1)
    outputs = wide.standardize(noise)[:, None]
    scores = found(outputs, wide, numbered(labels))
    predictions, truth = wide.predict(outputs).double(), labels.double()
    error, spread = (predictions - truth).square().mean(), truth.var(unbiased=False)
    assert scores["r2"] == pytest.approx((1 - error / spread).item(), rel=1e-3)
    assert scores["r2"] < 0
    assert scores["rmse"] == pytest.approx(error.sqrt().item(), rel=1e-4)
    assert scores["mae"] == pytest.approx((predictions - truth).abs().mean().item(), rel=1e-4)


@pytest.mark.parametrize("count", [1, 5])
def test_r2_of_a_single_label_is_left_out_f24(count):
    task = Regression(label_min=0, label_max=9)
    scores = found(torch.full((count, 1), 4.0), task, numbered(torch.full((count,), 3.0)))
    assert scores == {"mae": pytest.approx(1), "rmse": pytest.approx(1)}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("classes", [True, False])
def test_outputs_that_are_none_are_an_error_and_not_an_accuracy_f15(classes, value):
    task = Classification(tuple("abcdef")) if classes else Regression(label_min=0, label_max=9)
    labels = torch.arange(20) % 6
    outputs = torch.zeros(20, task.num_outputs)
    outputs[17, 0] = value
    with pytest.raises(ValueError, match="numbered: the outputs of Answers are not finite"):
        found(outputs, task, numbered(labels if classes else labels.float()))


def test_a_class_that_a_network_rules_out_is_no_error():
    outputs = torch.nn.functional.one_hot(torch.arange(20) % 6).float().log()
    assert found(outputs, Classification(tuple("abcdef")), numbered(torch.arange(20) % 6))["top1"] == 100


def test_no_images_are_a_sentence():
    with pytest.raises(ValueError, match="numbered has no images"):
        found(torch.zeros(1, 3), Classification(tuple("abc")), numbered(torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_given_back_as_it_was_lent_f20(fails):
    model = Answers(torch.full((6, 3), torch.nan) if fails else torch.zeros(6, 3)).train()
    model.norm.eval().requires_grad_(False)
    before = [(part.training, [p.requires_grad for p in part.parameters()]) for part in model.modules()]
    random = torch.get_rng_state()
    try:
        network_metrics(
            model, IDENTITY, Classification(tuple("abc")), numbered(torch.arange(6) % 3), accelerator=Accelerator()
        )
    except ValueError:
        assert fails
    assert [(part.training, [p.requires_grad for p in part.parameters()]) for part in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), random)


# --- F13: what a state_dict does not hold is asked for ----------------------------------------------------------------


def test_a_network_of_unknown_normalisation_is_refused_f13():
    """It was evaluated with the statistics of the test set: 85.2 % in place of 10.2 %."""
    data, model = numbered(torch.arange(6) % 3), Answers(torch.zeros(6, 3))
    with pytest.raises(ValueError, match="how its input is normalised"):
        gankd.evaluate(model, data)
    assert 0 <= gankd.evaluate(model, data, normalize=IDENTITY)["top1"] <= 100


def test_a_network_of_unknown_units_is_refused_f13():
    """It was evaluated with the label statistics of the test set: an error of 5.20 in place of 0.52."""
    data, model = numbered(torch.arange(6).float()), Answers(torch.zeros(6, 1))
    with pytest.raises(ValueError, match="in which units it answers"):
        gankd.evaluate(model, data, normalize=IDENTITY)
    assert gankd.evaluate(model, data, normalize=IDENTITY, task=task_of(data))["mae"] == pytest.approx(1.5)


def test_neighbours_of_large_labels_lose_no_digits_f8():
    labels = 20_000 + torch.rand(50, generator=torch.Generator().manual_seed(0))
    bank = torch.nn.functional.one_hot(torch.arange(50) % 5).float()
    means = knn_regress(query_features=bank[:5], bank_features=bank, bank_labels=labels, k=10, temperature=0.01)
    truth = torch.stack([labels.double()[row::5].mean() for row in range(5)])
    assert (means.double() - truth).abs().max() < 1e-6
