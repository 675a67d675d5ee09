"""Views that repeat: what decides them, that a kept answer of the teacher is what it would say now, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn

import gankd
from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet, LazyImages
from gankd.data.views import Views
from gankd.experiment.config import ExperimentConfig
from gankd.methods import METHODS, Distiller, Term, build_distiller, check_views, method_config
from gankd.methods.alone.supervised import Supervised
from gankd.methods.combined import Distillation
from gankd.methods.label_free.simreg import SimReg
from gankd.models import SmallResNet
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import task_of
from gankd.training import RunContext, TrainingConfig, fit
from generators.images import to_unit_range
from tests.commands import run_two

AUGMENTATION = AugmentationConfig(
    crop_padding=2, horizontal_flip=True, rotation=20, translation=0.1, scale=0.1, cutout=0.25, brightness=0.3,
    contrast=0.3, saturation=0.3,
)  # fmt: skip
TRAINING = TrainingConfig(
    steps=14, batch_size=6, learning_rate=0.01, log_every=1, checkpoint_every=5, augmentation=AUGMENTATION
)
NUM_VIEWS = 3


def image_set(num_samples: int, seed: int = 0, *, lazy: bool = False, **keywords) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (num_samples, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(num_samples) % 3
    if lazy:
        return ImageSet(LazyImages(lambda index: images[index], tuple(images.shape)), labels, **keywords)
    return ImageSet(images, labels, **keywords)


def two_sets(num_real: int = 9, num_synthetic: int = 16) -> tuple[ImageSet, ImageSet]:
    return image_set(num_real), image_set(num_synthetic, 1, name="synthetic", is_synthetic=True)


def network(seed: int, widths: tuple[int, ...] = (4, 8)) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallResNet(3, in_channels=3, widths=widths)


def make_teacher() -> tuple[Teacher, list[int]]:
    """A teacher, and the numbers of images that it has been asked about."""
    module, asked = network(7, (8, 16)), []
    module.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    return Teacher(module, Normalize.of(image_set(9).images)), asked


def make_views(source: BatchSource, *, seed: int = 0, num_views: int = NUM_VIEWS, teacher: Teacher | None = None):
    return Views(Augment(AUGMENTATION), num_views, source, teacher=teacher, seed=seed)


def shown(views: Views, source: BatchSource, num_steps: int) -> list[tuple[int, Tensor]]:
    """(sample, what it showed), in the order of the stream."""
    found = []
    for step, batch in enumerate(source.stream(0, num_steps)):
        views.step = step
        found += zip(batch.indices.tolist(), views(batch), strict=True)
    return found


def occurrences(found: list[tuple[int, Tensor]]) -> dict[tuple[int, int], Tensor]:
    """By (sample, how often it was shown before)."""
    by_count, counts = {}, {}
    for sample, view in found:
        count = counts.get(sample, 0)
        by_count[sample, count] = view
        counts[sample] = count + 1
    return by_count


# --- what decides a view ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    num_real=st.integers(1, 12),
    num_synthetic=st.integers(1, 12),
    batch_size=st.integers(2, 9),
    num_views=st.integers(1, 4),
    is_union=st.booleans(),
)
def test_a_sample_goes_through_its_views_in_turn(num_real, num_synthetic, batch_size, num_views, is_union) -> None:
    """Whatever the sets' sizes: also where a batch straddles passes, or a set is smaller than its share of a batch."""
    source = BatchSource(
        *two_sets(num_real, num_synthetic), batch_size=batch_size, synthetic_fraction=None if is_union else 0.5
    )
    views = make_views(source, num_views=num_views)
    found = occurrences(shown(views, source, 12))
    for (sample, count), view in found.items():
        assert torch.equal(view, found[sample, count % num_views])
    for sample in {sample for sample, _ in found}:
        different = [found[sample, count] for count in range(num_views) if (sample, count) in found]
        assert len(torch.stack(different).unique(dim=0)) == len(different)


def test_a_view_does_not_depend_on_batches_processes_order_or_the_caller_s_random_numbers() -> None:
    real = image_set(10)
    one = BatchSource(real, batch_size=4, seed=0)
    found = occurrences(shown(make_views(one), one, 15))
    torch.manual_seed(99)
    other = BatchSource(real, batch_size=7, seed=5)
    for key, view in occurrences(shown(make_views(other), other, 8)).items():
        assert torch.equal(view, found[key])
    for rank in range(2):
        half = BatchSource(real, batch_size=4, seed=0, rank=rank, world_size=2)
        views = make_views(half)
        for step in range(15):
            views.step = step
            batch = half.batch(step)
            numbers = half.passes(step).tolist()
            for sample, number, view in zip(batch.indices.tolist(), numbers, views(batch), strict=True):
                assert torch.equal(view, found[sample, number % NUM_VIEWS])
    other_seed = occurrences(shown(make_views(one, seed=1), one, 15))
    assert not any(torch.equal(other_seed[key], view) for key, view in found.items())


def test_views_are_draws_of_the_augmentation() -> None:
    source = BatchSource(image_set(500), batch_size=500)
    (views, augment) = make_views(source), Augment(AUGMENTATION)
    views.step = 0
    batch = source.batch(0)
    torch.manual_seed(0)
    fixed, fresh = views(batch), augment(batch.images)
    assert fixed.dtype == fresh.dtype and fixed.shape == fresh.shape
    assert fixed.min() >= 0 and fixed.max() <= 1
    assert fixed.mean().item() == pytest.approx(fresh.mean().item(), rel=0.02)
    assert fixed.std().item() == pytest.approx(fresh.std().item(), rel=0.02)


def test_nothing_is_drawn_from_the_default_generator_and_nothing_stored() -> None:
    source, (teacher, _) = BatchSource(image_set(9), batch_size=4), make_teacher()
    state = torch.get_rng_state()
    views = make_views(source, teacher=teacher)
    shown(views, source, 5)
    views.answers(source.batch(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert not views.state_dict()


def test_evaluation_mode_only_converts() -> None:
    source = BatchSource(image_set(9), batch_size=4)
    batch = source.batch(0)
    assert torch.equal(make_views(source).eval()(batch), to_unit_range(batch.images))


def test_partners_of_a_class_show_the_view_of_the_sample_they_are_put_beside() -> None:
    source = BatchSource(image_set(9), batch_size=7, sampling="class_pairs")  # three pairs, and one more partner
    for step in range(9):
        numbers = source.passes(step)
        drawn = [(3 * step + place) // 9 for place in range(3)]
        assert numbers.tolist() == [*drawn, *drawn, drawn[0]]


# --- what the teacher says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [None, 0.5])
@pytest.mark.parametrize("is_lazy", [False, True])
def test_kept_answers_are_what_the_teacher_would_say_now(fraction: float | None, is_lazy: bool) -> None:
    real, synthetic = image_set(9, lazy=is_lazy), image_set(16, 1, lazy=is_lazy, name="synthetic", is_synthetic=True)
    source = BatchSource(
        real, synthetic, batch_size=6, synthetic_fraction=fraction, memory_budget=0 if is_lazy else 1 << 20, workers=0
    )
    assert source.resident != is_lazy
    teacher, _ = make_teacher()
    views = make_views(source, teacher=teacher)
    for step, batch in enumerate(source.stream(0, 30)):
        views.step = step
        torch.testing.assert_close(views.answers(batch), teacher(views(batch)), rtol=1e-6, atol=1e-6)


def test_each_view_is_asked_about_once_and_not_before_it_is_shown() -> None:
    source = BatchSource(*two_sets(8, 16), batch_size=8, synthetic_fraction=0.5)  # passes of 2 and of 4 steps
    teacher, asked = make_teacher()
    views = make_views(source, teacher=teacher)
    totals = []
    for step in range(20):
        views.step = step
        views.answers(source.batch(step))
        totals.append(sum(asked))
    assert totals[:12] == [24, 24, 32, 32, 56, 56, 56, 56, 72, 72, 72, 72]
    assert totals[-1] == NUM_VIEWS * (8 + 16)
    assert max(asked) <= source.batch_size, "a teacher that trains a student fits in memory with a batch, not with more"


def test_answers_in_half_precision_are_those_of_a_teacher_in_half_precision() -> None:
    source = BatchSource(image_set(9), batch_size=6)
    teacher, _ = make_teacher()
    views = make_views(source, teacher=teacher)
    views.step = 0
    batch = source.batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept, live = views.answers(batch), teacher(views(batch))
    assert kept.dtype == torch.float32 and live.dtype == torch.bfloat16
    torch.testing.assert_close(kept, live.float(), rtol=1e-6, atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


class Interruption(Exception):
    """Stands for a killed process."""


def make_distiller(source: BatchSource, teacher: Teacher, *, is_live: bool = False) -> Distiller:
    """A student to be trained on `NUM_VIEWS` views; live: a tapped feature, which no loss reads, keeps the teacher busy."""
    distiller = build_distiller(
        network(0),
        teacher,
        task_of(image_set(9)),
        method_config("kd"),
        augment=make_views(source, teacher=teacher),
        normalize=Normalize.of(image_set(9).images),
        data=source,
    )
    if is_live:
        distiller.terms["kd"].teacher_taps = ["stem"]
    return distiller


def train(
    distiller: Distiller, source: BatchSource, directory: Path | None = None, until: int | None = None
) -> nn.Module:
    def watch(values: dict) -> None:
        if values["step"] == until:
            raise Interruption

    fit(
        distiller,
        source,
        TRAINING.replace(views=NUM_VIEWS),
        RunContext(accelerator=Accelerator(), seed=0, directory=directory, log=watch),
    )
    return distiller.deployable()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    for (name, first), second in pairs:
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6, msg=name)


def test_the_student_is_that_of_a_live_teacher_on_the_same_views() -> None:
    real, synthetic = two_sets()
    students, totals = [], []
    for is_live in (False, True):
        source = BatchSource(real, synthetic, batch_size=6)
        teacher, asked = make_teacher()
        distiller = make_distiller(source, teacher, is_live=is_live)
        students.append(train(distiller, source))
        totals.append(sum(asked))
    assert_equal(*students)
    assert totals == [NUM_VIEWS * 25, 14 * 6]  # 14 steps are 3.4 passes


def test_a_resumed_run_asks_again_and_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    source = BatchSource(*two_sets(), batch_size=6)
    whole = train(make_distiller(source, make_teacher()[0]), source)
    with pytest.raises(Interruption):
        train(make_distiller(source, make_teacher()[0]), source, tmp_path, until=8)
    assert_equal(train(make_distiller(source, make_teacher()[0]), source, tmp_path), whole)


def test_a_library_user_only_says_how_many_views() -> None:
    real, synthetic = two_sets()
    students = {}
    for num_views in (None, NUM_VIEWS):
        module, asked = network(7, (8, 16)), []
        module.register_forward_hook(lambda _, inputs, __, asked=asked: asked.append(len(inputs[0])))
        students[num_views] = gankd.distill(
            network(0), module, real=real, synthetic=synthetic, method="kd", training=TRAINING, views=num_views
        )
        measured = 9  # real images, on which the teacher is measured before the training
        assert sum(asked) == measured + (14 * 6 if num_views is None else NUM_VIEWS * 25)
    assert not torch.equal(students[None].head.weight, students[NUM_VIEWS].head.weight)


def test_without_augmentation_one_view_is_what_a_live_teacher_sees() -> None:
    """Only for who asks for it: `views: 1` is then the same run, with the teacher asked once a sample."""
    students, totals = [], []
    plain = TRAINING.replace(augmentation=AugmentationConfig())
    for num_views in (None, 1):
        module, asked = network(7, (8, 16)), []
        module.register_forward_hook(lambda _, inputs, __, asked=asked: asked.append(len(inputs[0])))
        real = image_set(9)
        students.append(gankd.distill(network(0), module, real=real, method="kd", training=plain, views=num_views))
        totals.append(sum(asked))
    assert_equal(*students)
    measured = 9  # real images, on which the teacher is measured before the training
    assert totals == [measured + 14 * 6, measured + 9]


def test_a_teacher_whose_features_are_read_stays_live_and_sees_the_same_views() -> None:
    module, asked = network(7, (8, 16)), []
    seen: list[Tensor] = []
    student = network(0)
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    student.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    method = {"name": "combined", "terms": [{"name": "kd"}, {"name": "sp", "weight": 1}]}
    gankd.distill(student, module, real=image_set(9), method=method, training=TRAINING, views=NUM_VIEWS)
    of_teacher = [images for images in seen if len(images) == 6][-14:]
    of_student = [images for images in asked if len(images) == 6][-14:]
    assert len(of_teacher) == len(of_student) == 14
    assert all(torch.equal(*pair) for pair in zip(of_teacher, of_student, strict=True))


@pytest.mark.parametrize("terms", [["kd", "dkd"], ["kd", "at"]])
def test_combined_terms_repeat_views_together(terms: list[str]) -> None:
    """Answers are kept where outputs alone are read, and asked for again where features are; nothing else differs."""
    real, teacher, method = image_set(9), network(1), {"name": "combined", "terms": [{"name": name} for name in terms]}
    asked: list[int] = []
    teacher.register_forward_hook(lambda module, inputs, outputs: asked.append(len(outputs)))
    arguments = {"real": real, "method": method, "steps": 6, "batch_size": 6, "normalize": Normalize.of(real.images)}
    students, questions = [], []
    for views in (None, 1):  # without augmentation
        asked.clear()
        students.append(gankd.distill(network(0), teacher, **arguments, views=views).state_dict())
        questions.append(sum(asked))
    for live, kept in zip(*(student.values() for student in students), strict=True):
        torch.testing.assert_close(kept, live)
    assert (questions[1] < questions[0]) == ("at" not in terms)


def test_a_term_with_fresh_views_is_refused_among_others_too(monkeypatch) -> None:
    config = method_config({"name": "combined", "terms": [{"name": "kd"}, {"name": "at"}]})
    check_views(config, 2)
    monkeypatch.setattr(METHODS["at"], "repeats_views", False)
    with pytest.raises(ValueError, match="method at draws fresh views in every step"):
        check_views(config, 2)


def test_supervised_training_repeats_its_views_too() -> None:
    seen: list[Tensor] = []
    student = network(0)
    student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    gankd.distill(student, real=image_set(6), method="supervised", training=TRAINING, views=2)
    passes = torch.stack(seen[-14:]).flatten(0, 1)
    assert len(passes.unique(dim=0)) == 2 * 6


# --- refusals ---------------------------------------------------------------------------------------------------------

OTHERS = [name for name, method in METHODS.items() if not issubclass(method, (Term, Distillation, Supervised, SimReg))]


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_with_fresh_views_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"method {name} draws fresh views in every step; leave `views` null"):
        check_views(METHODS[name].Config(), 2)
    check_views(METHODS[name].Config(), None)


@pytest.mark.parametrize("name", OTHERS[:1])
def test_an_experiment_names_the_arm_that_cannot_repeat_views(name: str) -> None:
    values = {"name": "mine", "data": {"name": "digits"}, "student": {"arms": {"one": {"method": {"name": name}}}}}
    ExperimentConfig.of(values)
    values["student"]["views"] = 2
    with pytest.raises(ValueError, match=rf"student\.arms\.one: method {name} draws fresh views"):
        ExperimentConfig.of(values)


@pytest.mark.parametrize("views", [0, -1, 1.5])
def test_a_number_of_views_that_cannot_be_is_refused_by_name(views: float) -> None:
    with pytest.raises(ValueError, match="views"):
        TrainingConfig.of({"views": views})


# --- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_share_the_questions_and_know_all_answers() -> None:
    output = run_two("tests.data.test_views")
    lines = [line for line in output.splitlines() if line.startswith("result: ")]
    # 9 + 16 samples in 3 views are 75 questions: the even samples of a set for process 0, the odd ones for process 1
    assert lines == [f"result: asked {[3 * 13, 3 * 12]}, the same as one process: [True, True]"]


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    tables, counts = [], []
    for share in ({}, {"rank": rank, "world_size": world_size}):
        source = BatchSource(*two_sets(), batch_size=6, synthetic_fraction=0.5, **share)
        teacher, asked = make_teacher()
        distiller = make_distiller(source, teacher)
        if share:
            train(distiller, source)
        else:  # what one process would know
            for step in range(14):
                distiller.augment.step = step
                distiller.augment.answers(source.batch(step))
        tables.append(distiller.augment.table)
        counts.append(sum(asked))
    same = torch.allclose(*tables, rtol=1e-6, atol=1e-6)
    found = accelerator.gather(torch.tensor([[counts[1], same]])).tolist()  # [2, 2]
    if accelerator.is_main_process:
        asked, verdicts = [row[0] for row in found], [bool(row[1]) for row in found]
        print(f"result: asked {asked}, the same as one process: {verdicts}", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
