"""What is said of a generator and a teacher before any work is done, and how they are given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import gankd
from gankd.data.sets import ImageSet
from gankd.experiment.config import load_config
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.pipeline import Run
from gankd.synthesis.checks import at_chance_level
from gankd.synthesis.config import SynthesisConfig
from gankd.synthesis.ratio import even_frequencies
from gankd.synthesis.stage import Synthesis
from gankd.tasks import Classification, Regression
from generators.wrapping import wrap
from tests.synthesis.test_stage import CONFIG, KINDS, PLAIN, make, make_generator, make_real, make_teacher, run

NAMES = ("a", "b", "c")
IDENTITY = Normalize(torch.zeros(1), torch.ones(1))


def columns(count: int = 60) -> ImageSet:
    """Class k is bright in column k of three."""
    labels = torch.arange(count) % 3
    images = torch.nn.functional.one_hot(labels, 3)[:, None, None, :].expand(-1, 1, 3, 3) * 255
    return ImageSet(images.to(torch.uint8).contiguous(), labels, class_names=NAMES, name="columns")


def column_teacher(num_classes: int = 3, value: float = 9.0) -> Teacher:
    linear = nn.Linear(9, num_classes, bias=False)
    linear.weight.data = value * torch.eye(num_classes, 3).repeat(1, 3)
    return Teacher(nn.Sequential(nn.Flatten(), linear), IDENTITY)


def drawing(change, num_classes: int = 3):
    """A generator of the columns, whose images and labels are changed."""

    def draw(z: Tensor, y: Tensor) -> Tensor:
        images = torch.nn.functional.one_hot(y % 3, 3)[:, None, None, :].expand(-1, 1, 3, 3) * 2.0 - 1
        return change(images, z)

    return wrap(draw, resolution=3, image_channels=1, latent_dim=1, num_classes=num_classes)


def synthesize(directory: Path, generator, teacher=None, *, num_samples: int = 300, **settings) -> None:
    config = SynthesisConfig(
        num_samples=num_samples, chunk_size=100, rho=None, subsample={"enabled": False}, **settings
    )
    real = columns()
    Synthesis(
        generator,
        teacher or column_teacher(),
        Classification(NAMES),
        real,
        config,
        directory=directory,
        seed=0,
        accelerator=Accelerator(cpu=True),
    ).run()


# --- F15: what does not fit is said before work -----------------------------------------------------------------------


def test_a_generator_that_fits_is_taken(tmp_path: Path) -> None:
    synthesize(tmp_path, drawing(lambda images, z: images))


@pytest.mark.parametrize("num_classes", [4, 10])
def test_a_generator_of_more_classes_is_refused_f15(tmp_path: Path, num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"the generator knows {num_classes} classes, the data has 3"):
        synthesize(tmp_path, drawing(lambda images, z: images, num_classes))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_a_teacher_of_other_classes_is_refused_f15(tmp_path: Path, num_classes: int) -> None:
    with pytest.raises(ValueError, match=rf"answers 8 images with \[8, {num_classes}\], the task needs \[8, 3\]"):
        synthesize(tmp_path, drawing(lambda images, z: images), column_teacher(num_classes))
    with pytest.raises(ValueError, match="the task needs"):
        gankd.synthesize(
            drawing(lambda images, z: images),
            column_teacher(num_classes).module,
            real=columns(),
            num_samples=9,
            directory=tmp_path / "library",
        )
    assert not list(tmp_path.iterdir()), "what was refused leaves nothing that stands in the way of the right command"


def test_a_regressor_of_many_numbers_is_refused_f15(tmp_path: Path) -> None:
    real = make_real("regression")
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match=r"answers 8 images with \[8, 5\], the task needs \[8, 1\]"):
        gankd.synthesize(make_generator("regression"), module, real=real, num_samples=9, directory=tmp_path)


def test_a_source_in_0_1_is_refused_f15(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an image in \[0, 1\] is not one in \[-1, 1\]"):
        synthesize(tmp_path, drawing(lambda images, z: images / 2 + 0.5))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 255.0])
def test_images_out_of_range_are_refused_f15(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"values in \[.*\]"):
        synthesize(tmp_path, drawing(lambda images, z: images * value))


def test_images_that_break_later_are_refused_with_their_chunk_f15(tmp_path: Path) -> None:
    """The few that are looked at beforehand are fine."""
    generator, calls = drawing(lambda images, z: images), []
    sample = generator.sample

    def breaking(labels, latents=None):
        calls.append(len(labels))
        return sample(labels, latents) * (torch.nan if calls.count(100) > 1 else 1)

    generator.sample = breaking
    with pytest.raises(ValueError, match="candidates, chunk 1: the generator draws values in"):
        synthesize(tmp_path, generator)


def test_a_teacher_that_answers_nothing_is_refused_f15(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the teacher's outputs for real images are not finite"):
        synthesize(tmp_path, drawing(lambda images, z: images), column_teacher(value=torch.nan))


def test_a_class_that_the_teacher_rules_out_is_no_error(tmp_path: Path) -> None:
    teacher = column_teacher()
    teacher.module.append(nn.Threshold(5.0, -torch.inf))
    synthesize(tmp_path, drawing(lambda images, z: images), teacher)


def test_a_generator_of_much_wider_labels_is_pointed_out_f15(tmp_path: Path) -> None:
    real = ImageSet(make_real("regression").images, torch.linspace(-1, 1, 40))
    with pytest.warns(UserWarning, match=r"knows labels in \[-40, 60\], the data has \[-1, 1\]"):
        make("regression", tmp_path, PLAIN, real=real)


# --- H: a generator at chance level -----------------------------------------------------------------------------------


def test_a_generator_that_shows_the_teacher_nothing_stops_the_run_h(tmp_path: Path) -> None:
    def any_class(images: Tensor, z: Tensor) -> Tensor:
        shown = ((z > -0.43).long() + (z > 0.43).long()).flatten()
        return torch.nn.functional.one_hot(shown, 3)[:, None, None, :].expand_as(images) * 2.0 - 1

    shuffled = drawing(any_class)
    with pytest.raises(ValueError, match=r"reads the generator at chance level .* synthesis\.force=true"):
        synthesize(tmp_path / "one", shuffled)
    synthesize(tmp_path / "two", shuffled, force=True)
    same = drawing(lambda images, z: torch.tensor([1.0, -1, -1]).expand_as(images))
    with pytest.raises(ValueError, match="chance level"):
        synthesize(tmp_path / "three", same)


@pytest.mark.parametrize("right", [0.2, 0.5, 1.0])
def test_a_weak_generator_is_not_at_chance_level(right: float) -> None:
    labels = torch.arange(500) % 10
    seen = torch.where(torch.arange(500) < 500 * right, labels, labels.flip(0).roll(1))
    outputs = torch.nn.functional.one_hot(seen, 10).float()
    assert not at_chance_level(outputs, labels, Classification(tuple("abcdefghij")))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_scalars_at_chance_level(scale: float) -> None:
    task = Regression(label_min=0, label_max=scale, mean=0, std=scale)
    labels = torch.rand(500, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(500, generator=torch.Generator().manual_seed(1))
    assert at_chance_level(noise[:, None], scale * labels, task)
    assert at_chance_level(torch.full((500, 1), 0.5), scale * labels, task)
    assert not at_chance_level((0.7 * noise + 0.3 * labels)[:, None], scale * labels, task)


# --- F20: what is lent comes back -------------------------------------------------------------------------------------


def state(module: nn.Module) -> list:
    return [(part.training, [parameter.requires_grad for parameter in part.parameters()]) for part in module.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_generator_and_teacher_are_given_back_as_they_were_lent_f20(tmp_path: Path, fails: bool) -> None:
    """The teacher came back frozen for good."""
    real = make_real("classification")
    generator = make_generator("classification").train().requires_grad_(True)
    teacher = make_teacher(real).module.train().requires_grad_(True)
    before, random = [state(generator), state(teacher)], torch.get_rng_state()
    config = PLAIN.replace(rho=0.01, max_candidates=40) if fails else CONFIG
    try:
        gankd.synthesize(generator, teacher, real=real, num_samples=31, config=config, directory=tmp_path)
    except ValueError as error:
        assert fails and "candidates leave fewer" in str(error)
    else:
        assert not fails
    assert [state(generator), state(teacher)] == before
    assert torch.equal(torch.get_rng_state(), random)


# --- F22: scalars as in the paper -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rho"), [("classification", 0.9), ("regression", 0.7)])
def test_the_share_that_is_kept_is_the_papers_f22(tmp_path: Path, kind: str, rho: float) -> None:
    run(kind, tmp_path, SynthesisConfig(**PLAIN.model_dump(exclude={"rho"})))
    assert gankd.synthesis.read_manifest(tmp_path)["rho"] == rho


def test_labels_of_the_ratio_network_come_as_evenly_as_those_of_candidates_f22() -> None:
    """Nine tenths of the labels lie in a tenth of the range: it filled nine tenths of the batches."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.rand(900, generator=generator), 1 + 9 * torch.rand(100, generator=generator)])
    frequencies = even_frequencies(labels, num_groups=20)
    shares = frequencies / frequencies.sum()
    assert shares[:900].sum().item() == pytest.approx(0.1, abs=0.02)
    for low in range(1, 10):
        assert shares[(labels >= low) & (labels < low + 1)].sum().item() == pytest.approx(0.1, abs=0.04)


def test_samples_of_one_label_share_its_part_and_a_lone_one_fills_no_batches_f22() -> None:
    ages = torch.tensor([0.0, 1, 1, 1, 1, 2, 3, 116])
    frequencies = even_frequencies(ages, num_groups=20)
    assert frequencies.tolist() == pytest.approx([0.5, 0.25, 0.25, 0.25, 0.25, 1, 5.8, 5.8])


@pytest.mark.parametrize("kind", KINDS)
def test_only_scalars_are_drawn_by_their_frequency_f22(tmp_path: Path, kind: str, monkeypatch) -> None:
    drawn = []
    multinomial = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda *args, **kwargs: drawn.append(1) or multinomial(*args, **kwargs))
    make(kind, tmp_path).ratio_model()
    assert len(drawn) == (CONFIG.subsample.steps if kind == "regression" else 0)


@pytest.mark.parametrize("part", ["train", "pool"])
def test_m1_compares_with_the_images_that_the_generator_saw_f22(tiny, write_config, part: str) -> None:
    tiny["generator"]["train_on"] = part
    run = Run(load_config(write_config(tiny)), Accelerator(cpu=True))
    assert run.synthetic.real is getattr(run.data, part)
