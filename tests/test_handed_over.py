"""G, F9, F10, F15: what a caller of the library hands over that is no network, no task or no teacher for it."""

import copy

import pytest
import torch
from torch import nn

import gankd
from gankd.data.sets import ImageSet
from gankd.fingerprints import fingerprint
from gankd.models import build_model
from gankd.models.inputs import Normalize, card_of
from generators import wrap
from generators.inputs import read_inputs

IMAGES = torch.randint(0, 256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
CLASSES, SCALARS = (ImageSet(IMAGES, labels, name="mine") for labels in (torch.arange(12) % 3, torch.arange(12) / 11))
SHORT = {"steps": 1, "batch_size": 6}


def network(outputs: int = 3) -> nn.Module:
    return build_model("small_resnet", outputs, 3, widths=[4])


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))


SHARED = network()
REFUSED = {
    "a list of teachers": (network(), {"teacher": [network(), network()]}, "distill takes one teacher"),
    "a path": (network(), {"teacher": "runs/digits/teacher"}, "teacher is a str; give .* gankd.load_model"),
    "a function": (len, {}, "student is a builtin_function_or_method; give the network itself"),
    "itself": (SHARED, {"teacher": SHARED}, "student and teacher share parameters"),
    "a part of it": (nn.Sequential(SHARED), {"teacher": SHARED}, "student and teacher share parameters"),
    "half": (network().half(), {}, "has weights of float16; train it in float32"),
    "double": (network().double(), {}, "has weights of float64"),
    "scripted": (scripted(), {}, "student is a scripted program"),
    "lazy": (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), {}, "lazy layers do not know their inputs"),
    "another task": (network(), {"task": "regression"}, "task 'regression': the labels of mine are torch.int64"),
    "a task of a word": (network(), {"task": 3}, "task is a int; give gankd.task_of"),
    "statistics of a word": (network(), {"normalize": "imagenet"}, "normalize is a str; give Normalize"),
    "statistics that cannot be": (network(), {"normalize": ([0.5], [0.0])}, "means .* and standard deviations"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_g_what_has_no_answer_is_one_sentence(case: str) -> None:
    student, settings, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        gankd.distill(
            student, real=CLASSES, method="kd" if "teacher" in settings else "supervised", **settings, **SHORT
        )


def test_g_a_task_is_named_by_its_kind_and_statistics_by_two_lists() -> None:
    student, statistics = network(), ([0.5, 0.25, 0.5], [0.25, 0.5, 0.125])
    gankd.distill(student, real=CLASSES, method="supervised", task="classification", normalize=statistics, **SHORT)
    assert student.input_normalization == statistics
    assert gankd.evaluate(student, CLASSES, task="classification", normalize=statistics) == gankd.evaluate(
        student, CLASSES
    )


@pytest.mark.filterwarnings("ignore")
def test_f15_a_teacher_of_another_kind_of_label_is_refused() -> None:
    known = gankd.distill(network(), real=CLASSES, method="supervised", **SHORT)
    with pytest.raises(ValueError, match="the teacher was trained for classification, the task is regression"):
        gankd.distill(network(1), known, real=SCALARS, method="kd", **SHORT)
    with pytest.raises(ValueError, match="differ in shape"):
        gankd.distill(network(1), network(5), real=SCALARS, method="kd", **SHORT)
    gankd.distill(network(), network(5), real=CLASSES, method="rkd", **SHORT)  # which compares features


def test_f13_a_network_in_a_wrapper_remembers_too() -> None:
    student = network()
    gankd.distill(nn.DataParallel(student), real=CLASSES, method="supervised", **SHORT)
    assert student.input_normalization == card_of(Normalize.of(IMAGES)) and student.output_task.num_classes == 3


def test_f9_networks_of_equal_weights_and_other_layers_differ() -> None:
    first = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    second = copy.deepcopy(first)
    assert fingerprint(first) == fingerprint(second)
    second[2] = nn.Tanh()
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize("label", [{"num_classes": 3}, {"label_range": (0.0, 1.0)}])
def test_f9_functions_that_are_wrapped_as_generators_are_known_by_what_they_draw(label: dict) -> None:
    """There is no weight to compare: a store of one was read back for another."""

    def drawing(level: float):
        return wrap(lambda z, y: torch.full((len(z), 3, 8, 8), level), resolution=8, latent_dim=4, **label)

    assert fingerprint(drawing(0.5)) == fingerprint(drawing(0.5)) != fingerprint(drawing(-0.5))


def test_g_what_is_no_generator_or_no_teacher_is_one_sentence(tmp_path) -> None:
    made = {"real": CLASSES, "num_samples": 3, "directory": tmp_path / "store"}
    with pytest.raises(ValueError, match=r"generator is a builtin_function_or_method; .*generators.wrap"):
        gankd.synthesize(len, network(), **made)
    generator = wrap(lambda z, y: torch.zeros(len(z), 3, 8, 8), resolution=8, latent_dim=4, num_classes=3)
    with pytest.raises(ValueError, match="teacher is a str"):
        gankd.synthesize(generator, "runs/digits/teacher", **made)
    assert not (tmp_path / "store").exists()


def make_store(directory, num_samples: int) -> None:
    generator = wrap(
        lambda z, y: z.new_ones(len(z), 3, 8, 8) * (y.view(-1, 1, 1, 1) - 1), resolution=8, latent_dim=4, num_classes=3
    )
    off = {"force": True, "rho": None, "subsample": {"enabled": False}, "chunk_size": 6}
    gankd.synthesize(generator, SHARED, real=CLASSES, num_samples=num_samples, directory=directory, **off)


def test_g_a_library_call_does_not_advise_an_option_of_the_command_line(tmp_path) -> None:
    make_store(tmp_path / "store", 3)
    with pytest.raises(
        ValueError, match="other settings .config.num_samples: 3 there, 4 here.: choose another dir"
    ) as e:
        make_store(tmp_path / "store", 4)
    assert "--replace" not in str(e.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["half", "scripted", "traced", "quantised", "minus infinity"])
def test_g_students_learn_from_teachers_of_every_kind(kind: str) -> None:
    teacher = network().eval()
    if kind == "minus infinity":
        [module for module in teacher.modules() if isinstance(module, nn.Linear)][-1].bias.data[0] = -torch.inf
    given = {
        "half": teacher.half,
        "scripted": lambda: torch.jit.script(teacher),
        "traced": lambda: torch.jit.trace(teacher, torch.rand(2, 3, 8, 8)),
        "quantised": lambda: torch.ao.quantization.quantize_dynamic(teacher, {nn.Linear}, dtype=torch.qint8),
        "minus infinity": lambda: teacher,
    }[kind]()
    student = gankd.distill(network(), given, real=CLASSES, method="kd", **SHORT)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    if kind in ("scripted", "traced"):
        with pytest.raises(ValueError, match="scripted network does not let its features be read"):
            gankd.distill(network(), given, real=CLASSES, method="at", **SHORT)


def test_g_arrays_with_channels_last_train_a_generator() -> None:
    images, labels = read_inputs(IMAGES.permute(0, 2, 3, 1).numpy(), CLASSES.labels)
    assert torch.equal(images, IMAGES) and torch.equal(labels, CLASSES.labels)


def test_h_a_log_has_lines_and_no_bars_while_samples_are_drawn(tmp_path, capsys) -> None:
    make_store(tmp_path / "store", 3)
    said = capsys.readouterr().err
    assert "candidates" in said and "\r" not in said and "%|" not in said
