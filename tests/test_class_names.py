"""F7: the names of classes travel with data, teachers, generators and students, and are compared wherever two meet."""

import types
from pathlib import Path

import pytest
import torch
from torch import nn

import gankd
import generators
from gankd.class_names import class_columns
from gankd.data.sets import ImageSet
from gankd.models import build_model
from gankd.models.inputs import Normalize, remember
from gankd.models.teacher import Teacher
from gankd.tasks import Classification, Regression

LEVELS = {"ant": 0, "bee": 120, "cat": 240}
UNIT = Normalize(torch.zeros(3), torch.ones(3))


def pictures(*names: str, present: tuple[str, ...] | None = None, is_named: bool = True) -> ImageSet:
    """24 grey images, which show their class by their brightness; `names` in the order of the ids."""
    shown = [(present or names)[index % len(present or names)] for index in range(24)]
    images = torch.stack([torch.full((3, 8, 8), LEVELS[name], dtype=torch.uint8) for name in shown])
    labels = torch.tensor([names.index(name) for name in shown])
    return ImageSet(images, labels, class_names=names if is_named else None, name="mine")


class Brightness(nn.Module):
    """Knows ants, bees and cats, in this order."""

    def __init__(self, task=Classification(class_names=("ant", "bee", "cat"))):  # noqa: B008 (frozen)
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(50.0))
        remember(self, UNIT, task)

    def forward(self, images):
        levels = torch.tensor([*LEVELS.values()]) / 255
        return -self.sharpness * (images.mean(dim=(1, 2, 3))[:, None] - levels).abs()


OTHERS = {
    "a class lacks": pictures("ant", "cat"),
    "another order": pictures("cat", "ant", "bee"),
    "both": pictures("cat", "bee"),
    "no names": pictures("ant", "bee", "cat", is_named=False),
    "spaces": ImageSet(pictures("ant", "cat").images, pictures("ant", "cat").labels, class_names=("ant ", " cat")),
}


@pytest.mark.parametrize("case", OTHERS)
def test_f7_a_network_is_evaluated_on_the_classes_that_it_knows(case: str) -> None:
    assert gankd.evaluate(Brightness(), OTHERS[case]) == {"top1": 100}


def test_f7_a_class_that_a_network_does_not_know_is_an_error() -> None:
    dogs = ImageSet(OTHERS["both"].images, OTHERS["both"].labels, class_names=("dog", "ant"), name="mine")
    with pytest.raises(ValueError, match="mine: class 'dog' is not one of the network"):
        gankd.evaluate(Brightness(), dogs)


def test_f7_numbers_that_stand_for_missing_names_are_no_names() -> None:
    numbers = Brightness(Classification(class_names=("0", "1", "2")))
    assert gankd.evaluate(numbers, pictures("ant", "bee", "cat")) == {"top1": 100}
    digits = ImageSet(OTHERS["a class lacks"].images, OTHERS["a class lacks"].labels, class_names=("0", "2"))
    assert gankd.evaluate(numbers, digits) == {"top1": 100}, "folders 0 and 2 of the digits 0, 1, 2"


@pytest.mark.parametrize("case", ["a class lacks", "another order", "both"])
def test_f7_synthetic_images_are_counted_for_the_class_of_their_name(case: str) -> None:
    student = build_model("small_resnet", 3, 3, widths=[4])
    data = {"real": pictures("ant", "bee", "cat"), "synthetic": OTHERS[case]}
    seen = {}

    def watch(outputs):
        seen.update(
            {
                level.item(): label.item()
                for level, label in zip(outputs.batch.images[:, 0, 0, 0], outputs.labels, strict=True)
            }
        )
        return outputs.student.square().mean()

    gankd.distill(student, **data, method=watch, steps=4, batch_size=24)
    assert seen == {0: 0, 120: 1, 240: 2}
    with pytest.raises(ValueError, match="class 'bee' is not one of the task"):
        gankd.distill(student, real=OTHERS["a class lacks"], synthetic=data["real"], method="supervised", steps=1)


@pytest.mark.parametrize("names", [("ant", "bee", "cat"), ("cat", "ant", "bee"), ("cat", "ant")])
def test_f7_a_teacher_answers_in_the_order_of_the_data(names: tuple) -> None:
    data, teacher = pictures(*names), Teacher(Brightness()).for_task(Classification(class_names=names))
    answers = teacher.map(data.images, teacher)
    assert answers.shape == (24, len(names)) and torch.equal(answers.argmax(dim=1), data.labels)


def test_f7_a_teacher_of_other_classes_or_units_is_refused() -> None:
    with pytest.raises(
        ValueError, match="class 'dog' of the data is not one of the teacher, whose classes are ant, bee"
    ):
        Teacher(Brightness()).for_task(Classification(class_names=("ant", "dog")))
    known = Teacher(nn.Linear(1, 1), UNIT, task=Regression(0, 90, 40, 10, unit="degrees"))
    with pytest.raises(ValueError, match="the teacher answers in degrees, the labels are in radians"):
        known.for_task(Regression(0, 1.5, 1, 1, unit="radians"))
    assert class_columns(("a", "b"), ("0", "1"), "it") is class_columns((), ("a",), "it") is None


def test_f7_names_in_a_configuration_of_hugging_face_are_read() -> None:
    class Named(Brightness):
        def __init__(self, *names: str):
            super().__init__()
            self.output_task = None
            self.config = types.SimpleNamespace(id2label={str(index): name for index, name in enumerate(names)})

    assert gankd.evaluate(Named("ant", "bee", "cat"), OTHERS["both"]) == {"top1": 100}
    assert gankd.evaluate(Named("LABEL_0", "LABEL_1", "LABEL_2"), pictures("ant", "bee", "cat")) == {"top1": 100}
    with pytest.raises(ValueError, match="class 'ant' of the data .* whose classes are Ameise, Biene, Katze.*task="):
        Teacher(Named("Ameise", "Biene", "Katze")).for_task(Classification(class_names=("ant", "bee", "cat")))


def test_f7_a_generator_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    small = {"widths": (4, 4), "discriminator_widths": (4,), "latent_dim": 4, "label_dim": 4}
    data = pictures("ant", "bee", "cat")
    made = generators.train(data, num_classes=3, steps=1, batch_size=8, directory=tmp_path / "generator", **small)
    loaded = generators.load_generator(tmp_path / "generator")
    folder = generators.SNGANGenerator.from_pretrained(tmp_path / "generator")
    wrapped = generators.wrap(made, resolution=8, latent_dim=4, num_classes=3, class_names=("ant", "bee", "cat"))
    for generator in (made, loaded, folder, wrapped):
        assert generator.class_names == ("ant", "bee", "cat")
        generators.check_generator(generator, data.labels, num_classes=3, class_names=data.class_names)
        with pytest.raises(
            ValueError, match="the generator knows the classes ant, bee, cat, the data has cat, ant, bee"
        ):
            gankd.synthesize(
                generator,
                Brightness(),
                real=OTHERS["another order"],
                num_samples=9,
                directory=tmp_path / "store",
            )


class Folder(torch.utils.data.Dataset):
    """Like torchvision's ImageFolder."""

    def __init__(self, data: ImageSet):
        self.data, self.classes = data, list(data.class_names)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data.images[index], self.data.labels[index].item()


def test_f7_parts_of_a_data_set_have_its_classes() -> None:
    data = Folder(OTHERS["a class lacks"])
    part = torch.utils.data.Subset(torch.utils.data.Subset(data, range(20)), range(3, 15))
    joined = torch.utils.data.ConcatDataset([part, data])
    for dataset in (part, joined, torch.utils.data.DataLoader(part)):
        assert gankd.evaluate(Brightness(), dataset) == {"top1": 100}
    with pytest.raises(ValueError, match="joins data sets of other classes"):
        gankd.evaluate(Brightness(), torch.utils.data.ConcatDataset([data, Folder(OTHERS["another order"])]))


@pytest.mark.parametrize("train", [pictures("cat", "ant", "bee")])
def test_f7_probes_match_the_classes_of_both_sets(train: ImageSet) -> None:
    network = build_model("small_resnet", 3, 3, widths=[8])
    same, other = (gankd.probe(network, train, test)["knn_1"].value for test in (train, pictures("ant", "bee", "cat")))
    assert same == other
