"""What a user's own file adds: readers and augmentations by name or as they are, with settings like ours."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import gankd
from gankd.data.augment import AUGMENTATIONS, Augment, AugmentationConfig, SampleRandom
from gankd.data.config import DataConfig
from gankd.data.loader import BatchSource
from gankd.data.readers import READERS, read_data
from gankd.data.sets import ImageSet
from gankd.data.views import Views
from gankd.experiment.config import load_config
from gankd.training import TrainingConfig
from generators.settings import Count, Share


@pytest.fixture(autouse=True)
def doors_as_they_were():
    """What a test registers is gone afterwards."""
    before = dict(READERS), dict(AUGMENTATIONS)
    yield
    for registry, entries in zip((READERS, AUGMENTATIONS), before, strict=True):
        registry.clear()
        registry.update(entries)


def pictures(num_samples: int, *, size: int = 12) -> Tensor:
    return torch.arange(num_samples, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()


class Shades(Dataset):
    """Image i shows i; its class is a word."""

    def __init__(self, num_samples: int = 40):
        self.num_samples = num_samples

    def __len__(self):
        return self.num_samples

    def __getitem__(self, index):
        return pictures(self.num_samples)[index], ("dark", "light")[index % 2]


# --- readers ----------------------------------------------------------------------------------------------------------


def register_shades() -> None:
    @READERS.register("shades")
    def read_shades(config, kind, *, number: Count = 40, has_test: bool = False):
        """Shades of grey."""
        return Shades(number), Shades(10) if has_test else None


@pytest.mark.parametrize("budget", [0, 2048])
def test_a_reader_of_the_user_is_a_source_like_ours(tmp_path, budget) -> None:
    register_shades()
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\ndata: {{name: shades, number: 60, image_size: 8, channels: 1, memory_budget: {budget}}}\n"
    )
    config = load_config(path).data
    assert config.own == {"number": 60} and DataConfig.of(config.model_dump()) == config
    splits = read_data(config, kind="classification", seed=0)
    assert len(splits.pool) + len(splits.validation) + len(splits.test) == 60
    assert splits.train.image_shape == (1, 8, 8) and splits.train.class_names == ("dark", "light")
    values = splits.test.images[torch.arange(len(splits.test))][:, 0, 0, 0]
    assert torch.equal(values % 2, splits.test.labels)


def test_the_library_takes_it_by_name_too() -> None:
    register_shades()
    splits = gankd.load_data("shades", has_test=True, validation=0)
    assert len(splits.train) == 40 and len(splits.test) == 10 and len(splits.validation) == 0


def test_its_settings_are_validated_suggested_and_in_the_schema() -> None:
    register_shades()
    with pytest.raises(ValueError, match="unknown key 'numbre'; did you mean 'number'"):
        DataConfig.of({"name": "shades", "numbre": 3})
    with pytest.raises(ValueError, match="number: Input should be greater than 0, got -1"):
        DataConfig.of({"name": "shades", "number": -1})
    with pytest.raises(ValueError, match="name: unknown data set 'shadse'; did you mean 'shades'"):
        DataConfig.of({"name": "shadse"})
    with pytest.raises(ValueError, match=r"digits has no setting 'number' \(shades have\)"):
        DataConfig.of({"name": "digits", "number": 3})
    schema = DataConfig.model_json_schema()
    assert "shades" in schema["properties"]["name"]["enum"] and schema["properties"]["number"]["type"] == "integer"
    assert schema["additionalProperties"] is False


def test_a_class_and_arrays_will_do_and_what_does_not_fit_the_task_is_said() -> None:
    @READERS.register("angles")
    class Angles(Dataset):
        def __init__(self, config, kind, *, largest: float = 90.0):
            self.largest = largest

        def __len__(self):
            return 30

        def __getitem__(self, index):
            return pictures(30)[index], self.largest * index / 30

    @READERS.register("arrays")
    def read_arrays(config, kind):
        return (numpy.zeros((20, 8, 8, 3), dtype=numpy.uint8), numpy.arange(20) % 2), None

    splits = read_data(DataConfig(name="angles", largest=30), kind="regression", seed=0)
    assert splits.train.labels.dtype == torch.float32 and splits.train.labels.max() < 30
    with pytest.raises(ValueError, match="classification does not fit data.name: angles, whose labels are scalars"):
        read_data(DataConfig(name="angles"), kind="classification", seed=0)
    assert len(read_data(DataConfig(name="arrays", test=4), kind="classification", seed=0).test) == 4


def test_F7_the_classes_of_a_reader_s_two_parts_are_numbered_alike() -> None:
    @READERS.register("words")
    def read_words(config, kind):
        names = ["ant", "bee", "cat"] * 4
        return (pictures(12), names), (pictures(4), ["cat", "ant"] * 2)

    splits = read_data(DataConfig(name="words", validation=0), kind="classification", seed=0)
    assert splits.test.labels.tolist() == [2, 0, 2, 0] and splits.test.class_names == ("ant", "bee", "cat")


# --- augmentations ----------------------------------------------------------------------------------------------------


def register_solarize() -> None:
    @AUGMENTATIONS.register("solarize")
    def solarize(images, random, *, probability: Share = 0.5):
        """Turn bright pixels around."""
        chosen = random.uniform() < probability
        return torch.where(chosen[:, None, None, None], 1 - images, images)


def noise(images: Tensor, random: SampleRandom) -> Tensor:
    return (images + 0.1 * random.normal(*images.shape[1:])).clamp(0, 1)


def test_an_augmentation_by_name_is_each_sample_s_own_draw(tmp_path) -> None:
    register_solarize()
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndata: {name: digits}\nstudent: {augmentation: {own: [{name: solarize, probability: 0.3}]}}\n"
    )
    config = load_config(path).student.augmentation
    assert AugmentationConfig.of(config.model_dump(mode="json")) == config
    images = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8)
    changed = Augment(config)(images).flatten(1)
    assert (changed == changed[:, :1]).all() and changed.mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(Augment(config).eval()(images), torch.zeros(4000, 1, 2, 2))


def test_settings_of_augmentations_are_validated_and_suggested() -> None:
    register_solarize()
    for own, sentence in (
        ("solarise", "unknown augmentation 'solarise'; did you mean 'solarize'"),
        ({"name": "solarize", "probabilty": 1}, "unknown key 'probabilty'; did you mean 'probability'"),
        ({"name": "solarize", "probability": 2}, "probability: Input should be less than or equal to 1"),
        (lambda images: images, r"has to take \(images, random\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TrainingConfig.of({"augmentation": {"own": [own]}})


def test_ours_draw_the_same_with_and_without_the_user_s() -> None:
    draws = []
    for own in ((), (noise,)):
        torch.manual_seed(0)
        augment = Augment(AugmentationConfig(rotation=30, cutout=0.2, own=own))
        draws.append(augment.draw(5, (8, 8), device="cpu"))
    assert all(torch.equal(values, draws[1][name]) for name, values in draws[0].items())
    assert set(draws[1]) - set(draws[0]) == {"seeds"}


def test_a_sample_s_numbers_depend_on_its_seed_alone() -> None:
    seeds = torch.randint(1 << 62, (5000,), generator=torch.Generator().manual_seed(0))
    whole, part = SampleRandom(seeds), SampleRandom(seeds[3:5])
    for _ in range(2):
        assert torch.equal(whole.uniform(2)[3:5], part.uniform(2))
        assert torch.equal(whole.normal()[3:5], part.normal())
    numbers = torch.cat(
        [whole.uniform(3), SampleRandom(seeds, 1).uniform(2), SampleRandom(seeds + 9).uniform(1)], dim=1
    )
    torch.testing.assert_close(numbers.mean(dim=0), torch.full((6,), 0.5), rtol=0, atol=0.02)
    assert (torch.corrcoef(numbers.T) - torch.eye(6)).abs().max() < 0.06
    normal = whole.normal(4)
    assert normal.mean().abs() < 0.03 and normal.std().item() == pytest.approx(1, abs=0.03)


def test_views_repeat_the_user_s_draws() -> None:
    source = BatchSource(ImageSet(pictures(6), torch.arange(6) % 2), batch_size=6)
    views = Views(Augment(AugmentationConfig(own=(noise,))), 2, source, seed=0)
    shown = []
    for step in range(4):
        views.step = step
        batch = source.batch(step)
        shown.append(views(batch)[batch.indices.argsort()])
    assert torch.equal(shown[0], shown[2]) and torch.equal(shown[1], shown[3]) and not torch.equal(shown[0], shown[1])


def test_a_function_that_returns_other_images_is_named() -> None:
    def half(images, random):
        return images[:, :, ::2]

    with pytest.raises(
        ValueError, match=r"half made torch.Size\(\[2, 3, 6, 12\]\) of images of shape \(2, 3, 12, 12\)"
    ):
        Augment(AugmentationConfig(own=(half,)))(pictures(2))


def test_a_function_joins_in_the_library_call() -> None:
    real = ImageSet(pictures(12), torch.arange(12) % 2)

    def train(**settings):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2))
        return gankd.distill(student, real=real, method="supervised", steps=3, batch_size=4, **settings)[1].weight

    plain, noisy, again = train(), train(augmentation=noise), train(augmentation={"own": [noise]})
    assert torch.equal(noisy, again) and not torch.equal(noisy, plain)
