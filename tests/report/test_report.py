"""The report page: it stands alone, says what the numbers say, and shows every stage that there was."""

import base64
import functools
import io
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from statistics import fmean, stdev

import matplotlib
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gankd.data.sets import ImageSet
from gankd.data.splits import Splits
from gankd.report import SECTIONS, FinishedRun, write_report
from gankd.report.comparison import backbone_result, key_result
from gankd.report.curves import mean_curve
from gankd.report.images import LABEL_BINS, MOST_ROWS, label_rows
from gankd.report.page import duration
from gankd.report.plots import BLUE, Arm, Line, figure_to_svg, plot_arms, plot_curves, spread, strip_to_png
from gankd.report.sections import read_log
from gankd.report.text import num_decimals
from gankd.synthesis.store import read_manifest, write_store, write_tensors

CLASS_NAMES = ("cats & dogs", "<i>birds</i>", "fish")
KINDS = ("classification", "regression")


def make_images(count, kind, generator, *, shape=(3, 6, 6), **fields):
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    if kind == "classification":
        return ImageSet(images, torch.arange(count) % 3, class_names=CLASS_NAMES, **fields)
    return ImageSet(images, torch.linspace(-60, 60, count), **fields)


def collect(values):
    return {"values": values, "mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def make_arm(title, synthetic, test, *, validation=None, name="top1", method="kd"):
    return {
        "title": title,
        "synthetic": synthetic,
        "method": {"name": method},
        "seeds": list(range(len(test))),
        "test": {name: collect(test)},
        "validation": {name: collect(validation or test)},
        "seconds": [60.0] * len(test),
    }


def make_metrics(arms, *, teacher=95.5, kind="classification", synthesis=None, **changes):
    classes = kind == "classification"
    metric = "top1" if classes else "mae"
    return {
        "name": "trial",
        "title": "Does it help?",
        "notes": "",
        "task": {"kind": kind, "metric": metric, "unit": "%" if classes else "degrees", "higher_is_better": classes},
        "data": {"source": "noise", "image_shape": [3, 6, 6], "train": 30, "pool": 40, "validation": 5, "test": 7},
        "teacher": {"network": "large", "parameters": 90_000, "test": {metric: teacher}, "seconds": 61.0},
        "student": {"network": "small", "parameters": 1_234, "batch_size": 64, "steps": 200},
        "generator": {"trained": True, "seconds": 3700.0},
        "synthesis": synthesis,
        "representation": None,
        "arms": arms,
        "protocol": "the test split read once",
        "provenance": {
            "python": "3.11",
            "torch": "2.6",
            "device": "CPU",
            "commit": "c0ffee",
            "configuration": "0123abcd",
            "seed": 0,
            "processes": 1,
            "command": "gen_then_distill.py --config digits.yaml",
        },
        **changes,
    }


def make_run(directory, kind="classification", *, subsampling=True, filtering=True, **changes):
    """A finished run of noise: (directory, data, metrics)."""
    generator, classes = torch.Generator().manual_seed(0), kind == "classification"
    train, pool, validation, test = (make_images(count, kind, generator) for count in (30, 40, 5, 7))
    candidates = make_images(200, kind, generator)
    labels, errors = candidates.labels, torch.rand(200, generator=generator) + 0.01
    accepted = torch.rand(200, generator=generator) < 0.6 if subsampling else torch.ones(200, dtype=torch.bool)
    kept = accepted & (errors < 0.8) if filtering else accepted.clone()
    scores = {"labels": labels, "errors": errors, "accepted": accepted, "kept": kept}
    if subsampling:
        scores["ratios"] = torch.rand(200, generator=generator) * 3
    examples = {}
    for fate, fits in (("kept", kept), ("ratio", ~accepted), ("teacher", accepted & ~kept)):
        indices = fits.nonzero().flatten()[:40]
        examples |= {
            f"{fate}.images": candidates.images[indices],
            f"{fate}.labels": labels[indices],
            f"{fate}.errors": errors[indices],
        }
    store, indices = directory / "synthetic", kept.nonzero().flatten()[:50]
    write_tensors(store / "scores.safetensors", scores)
    write_tensors(store / "examples.safetensors", examples)
    samples = {"images": candidates.images[indices], "labels": labels[indices], "teacher_outputs": torch.zeros(50, 3)}
    write_store(
        store,
        samples,
        shard_size=20,
        manifest={
            "class_names": candidates.class_names,
            "num_candidates": 200,
            "labels_replaced": not classes,
            "rho": 0.8 if filtering else None,
            "bounds": [3.0] * (3 if classes else 20) if subsampling else None,
            "thresholds": ([0.8] * 3 if classes else 0.8) if filtering else None,
            "label_score": {"candidates": 70.0, "subsampled": 80.25, "filtered": 91.5},
        },
    )
    (directory / "config.yaml").write_text("name: trial\nnote: <b>\n")
    name = "top1" if classes else "mae"
    better = [93.0, 93.5, 94.0] if classes else [3.0, 3.5, 4.0]
    arms = {
        "real": make_arm("real + KD", 0.0, [90.0, 90.5, 91.0], name=name),
        "both": make_arm("real + synthetic", 0.5, better, name=name),
    }
    stages = ["generator", "teacher", *(f"student {arm} seed {seed}" for arm in arms for seed in range(3))]
    numbers = ("discriminator_loss", "generator_loss", "real_accuracy", "fake_accuracy", "real_ratio", "fake_ratio")
    lines = [
        {"time": 0.0, "stage": stage, "step": step, "loss": 1 / step, **dict.fromkeys(numbers, 0.5)}
        for stage in [*stages, *(["density_ratio"] if subsampling else [])]
        for step in (50, 100)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = make_metrics(arms, kind=kind, synthesis=read_manifest(store), **changes)
    return directory, Splits(train=train, validation=validation, test=test, pool=pool), metrics


def make_backbone(title, synthetic, method, test, *, validation=None):
    """An arm of backbones with `test` values of the linear probe; those of the neighbours are 10 lower."""
    validation = validation or test
    return {
        "title": title,
        "synthetic": synthetic,
        "method": {"name": method},
        "seeds": list(range(len(test))),
        "test": {"linear": collect(test), "knn_1": collect([value - 10 for value in test])},
        "validation": {"linear": collect(validation), "knn_1": collect([value - 10 for value in validation])},
        "seconds": [20.0] * len(test),
    }


def make_representation(*arms):
    return {
        "arms": {f"arm{number}": arm for number, arm in enumerate(arms)},
        "untrained": {"linear": collect([40.0, 42.0]), "knn_1": collect([30.0, 32.0])},
        "protocols": {"linear": "logistic regression & more", "knn_1": "the nearest of all"},
        "network": "backbone_net",
        "parameters": 77_754,
        "batch_size": 128,
        "steps": 4_000,
        "real": 1_797,
        "generated": 12_345,
        "probe_on": 321,
    }


SQUEEZED = make_backbone("squeezed", 0.5, "squeeze_and_span", [71.0, 73.0])
REAL_ONLY = make_backbone("two views", 0.0, "vicreg", [65.0, 67.0])


def with_backbones(run, *arms):
    """The same run, which trained backbones too and logged them."""
    directory, data, metrics = run
    representation = make_representation(*(arms or (SQUEEZED, REAL_ONLY)))
    with open(directory / "metrics.jsonl", "a") as file:
        for name, arm in representation["arms"].items():
            for seed in arm["seeds"]:
                for step in (50, 100):
                    line = {"stage": f"backbone {name} seed {seed}", "step": step, "loss": -1 / step}
                    file.write(json.dumps(line) + "\n")
    return directory, data, {**metrics, "representation": representation}


def without_students(run):
    """The same run without students, and so without the selection of samples for them."""
    directory, data, metrics = run
    shutil.rmtree(directory / "synthetic")
    log = [line for line in read_log(directory / "metrics.jsonl") if not line["stage"].startswith("student")]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return directory, data, {**metrics, "arms": {}, "synthesis": None}


def store_generated(run, count=40):
    generated = make_images(count, "classification", torch.Generator().manual_seed(1))
    samples = {"images": generated.images, "labels": generated.labels, "generator_features": torch.zeros(count, 4)}
    write_store(run[0] / "generated", samples, shard_size=20, manifest={"feature_widths": [4]})
    return run


class Page(HTMLParser):
    """What a browser finds: the text, and the pictures under every heading; unbalanced tags are an error."""

    VOID = {"meta", "img", "br"}

    def __init__(self, html):
        super().__init__()
        self.open, self.pieces, self.pictures, self.heading, self.ids = [], [], {}, "", []
        self.feed(html)
        assert self.open == []
        self.text = re.sub(r"\s+", " ", "".join(self.pieces))  # \s: the no-break spaces too

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("img", "svg"):
            self.pictures.setdefault(self.heading, []).append(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "h2":
            self.heading = ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass  # shapes of an SVG

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.heading += data
        if "style" not in self.open:
            self.pieces.append(data)


def write_and_parse(run, *only):
    """The page of a run, or some of its sections alone, which is faster: HTML, and what a browser finds."""
    if only:
        html = "\n".join(SECTIONS[name](FinishedRun(*run)) for name in only)
    else:
        html = write_report(*run).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """The pages of unchanged runs, each drawn once: as `write_and_parse`."""

    @functools.cache
    def draw(kind="classification", subsampling=True, filtering=True):
        directory = tmp_path_factory.mktemp("run")
        return write_and_parse(make_run(directory, kind, subsampling=subsampling, filtering=filtering))

    return draw


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filtering", [True, False])
@pytest.mark.parametrize("subsampling", [True, False])
def test_the_page_needs_nothing_beside_it_and_shows_a_picture_in_every_section(page_of, kind, subsampling, filtering):
    html, page = page_of(kind, subsampling, filtering)
    for reference in ("http:", "https:", "<script", "<link", "url(http", "@import", "file:"):
        assert reference not in html
    images = [picture for pictures in page.pictures.values() for picture in pictures if "src" in picture]
    assert images and all(picture["src"].startswith("data:image/png;base64,") for picture in images)
    sections = {"", "Real and synthetic images", "Selection of the synthetic images", "Training"}
    assert set(page.pictures) == sections
    assert all(picture.get("alt") or picture.get("aria-label") for part in page.pictures.values() for picture in part)
    assert ("density ratio, real : generated" in page.text) == subsampling
    assert ("rejected by the density ratio" in page.text) == subsampling
    assert ("rejected by the teacher" in page.text) == filtering
    assert f"Density ratio (M1): {'on' if subsampling else 'off'}" in page.text
    assert f"Teacher filter (M2): {'on, ρ = 0.8' if filtering else 'off'}" in page.text


def test_numbers_of_the_arms_and_of_the_selection_are_on_the_page(page_of):
    html, page = page_of()
    assert "Real + synthetic reaches a top-1 accuracy of 93.5 ± 0.5 % against 90.5 ± 0.5 % for real + KD" in page.text
    assert "the teacher has 95.5 %" in page.text
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr.*?</tr>", html)]
    assert any("|real + KD|" in row and "|none|" in row and "|3|" in row and "|90.5 ± 0.5|" in row for row in rows)
    assert any("|real + synthetic|" in row and "|50 %|" in row and "|+3.0|" in row for row in rows)
    assert any("|all candidates|" in row and "|200|" in row and "|70.0|" in row for row in rows)
    assert any("|kept by teacher filter|" in row and "|91.5|" in row for row in rows)
    assert any("|stored|" in row and "|50|" in row for row in rows)
    for fact in ("c0ffee", "0123abcd", "gen_then_distill.py --config digits.yaml"):
        assert fact in page.text
    assert "generator 1 h 2 min, teacher 1 min 1 s, students 6 min 0 s" in page.text
    assert "1,234 parameters" in page.text and "30 to train on, of a pool of 40" in page.text


def test_everything_from_the_user_is_escaped(tmp_path):
    evil = "<script>alert('1') & \"2\"</script>"
    directory, data, metrics = make_run(tmp_path, name=evil, title=evil, notes=f"First.\n\n{evil}")
    metrics["arms"]["real"]["title"] = evil
    metrics["provenance"]["command"] = evil
    metrics["task"]["unit"] = "<b>"
    html, page = write_and_parse((directory, data, metrics))
    assert "<script" not in html and "<b>" not in html and "<i>birds" not in html
    assert page.text.count(evil) >= 5
    assert "<i>birds</i>" in page.text and "cats & dogs" in page.text and "note: <b>" in page.text


def test_notes_are_paragraphs_and_their_section_is_left_out_without_notes(tmp_path, page_of):
    html, page = write_and_parse(make_run(tmp_path / "with", notes="One\nline.\n\n  Two.\n"), "notes")
    assert "How to read this" in page.text and "<p>One\nline.</p>\n<p>Two.</p>" in html
    assert "How to read this" not in page_of()[1].text


def test_the_same_run_gives_the_same_page_and_no_name_in_it_is_used_twice_for_two_things(tmp_path):
    run = make_run(tmp_path)
    first, page = write_and_parse(run)
    assert first == write_and_parse(run)[0]
    assert len(page.ids) == len(set(page.ids)) > 0


def test_a_loaded_generator_and_teacher_have_no_curves(tmp_path):
    directory, data, metrics = make_run(tmp_path, generator={"trained": False})
    log = [line for line in read_log(tmp_path / "metrics.jsonl") if line["stage"].startswith("student")]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    page = write_and_parse((directory, data, metrics), "training", "again")[1]
    assert len(page.pictures["Training"]) == 1
    assert "Generator: losses" not in page.text and "generator 1 h" not in page.text


def test_a_choice_of_rho_on_validation_is_told_in_the_units_of_the_metric(tmp_path):
    run = make_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for rho, error in ((0.5, -80.0), (0.9, -91.25), (0.5, -88.0)):
            file.write(json.dumps({"stage": "rho", "rho": rho, "validation_error": error}) + "\n")
    assert "on the validation split (0.5: 88.00 %, 0.9: 91.25 %)" in write_and_parse(run, "selection")[1].text


# --- the three kinds of experiments -----------------------------------------------------------------------------------

BACKBONES, SELECTION = "Backbones trained without labels", "Selection of the synthetic images"


def cells(html):
    """The rows of all tables, as the texts of their cells."""
    rows = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_an_experiment_on_backbones_alone_has_no_word_on_students(tmp_path):
    _html, page = write_and_parse(store_generated(without_students(with_backbones(make_run(tmp_path)))))
    assert set(page.pictures) == {BACKBONES, "Real and generated images", "Training"}
    assert "tudents" not in page.text and SELECTION not in page.text
    assert "0 for data and synthesis; backbones 0, 1" in page.text
    assert "generator 1 h 2 min, teacher 1 min 1 s, backbones 1 min 20 s" in page.text


def test_an_experiment_on_both_has_the_sections_of_both(tmp_path):
    _, page = write_and_parse(store_generated(with_backbones(make_run(tmp_path))))
    assert set(page.pictures) == {"", BACKBONES, "Real and synthetic images", SELECTION, "Training"}
    assert page.text.index("Real + synthetic reaches") < page.text.index("Squeezed reaches")
    assert "backbones 0, 1; students 0, 1, 2" in page.text
    assert "teacher 1 min 1 s, backbones 1 min 20 s, students 6 min 0 s" in page.text


def test_an_experiment_on_students_alone_has_no_word_on_backbones(page_of):
    assert "ackbone" not in page_of()[1].text


def test_images_that_were_not_stored_are_not_shown(tmp_path):
    _, page = write_and_parse(without_students(with_backbones(make_run(tmp_path))), "images")
    assert len(page.pictures["Real images"]) == len(CLASS_NAMES)
    assert "in the training split, not hand-picked" in page.text


def test_numbers_of_the_backbones_are_on_the_page(tmp_path):
    html, page = write_and_parse(without_students(with_backbones(make_run(tmp_path))), "backbones")
    rows = cells(html)
    head = rows.index(["", "generated", "method", "seeds", "linear [%]", "1-NN [%]"])
    assert rows[head + 1 : head + 4] == [
        ["squeezed", "50 %", "squeeze_and_span", "2", "72.0 ± 1.4", "62.0 ± 1.4"],
        ["two views", "none", "vicreg", "2", "66.0 ± 1.4", "56.0 ± 1.4"],
        ["untrained", "", "", "", "41.0 ± 1.4", "31.0 ± 1.4"],
    ]
    assert '<tr class="best"><td class="text">squeezed' in html
    for fact in (
        ["real images", "1,797, without their labels"],
        ["generated images", "12,345, not selected"],
        ["probes fitted to", "321 labelled images"],
        ["linear", "logistic regression &amp; more"],
        ["1-NN", "the nearest of all"],
    ):
        assert fact in rows
    assert "(backbone_net, 77,754 parameters) without labels for 4,000 steps of 128 images" in page.text


def test_what_a_conditional_generator_knows_is_told_where_its_features_are_used(tmp_path):
    known = "know the labels that the generator was trained with"
    assert known in write_and_parse(with_backbones(make_run(tmp_path / "squeezed")), "backbones")[1].text
    assert known not in write_and_parse(with_backbones(make_run(tmp_path / "real"), REAL_ONLY), "backbones")[1].text


def test_backbones_on_real_images_alone_say_nothing_of_generated_ones(tmp_path):
    html, page = write_and_parse(without_students(with_backbones(make_run(tmp_path), REAL_ONLY)), "backbones")
    assert "generated images" not in [row[0] for row in cells(html)] and "12,345" not in page.text


def test_every_method_of_backbones_has_curves_of_its_own(tmp_path):
    other = make_backbone("squeezed alone", 1.0, "squeeze_and_span", [60.0, 61.0])
    run = without_students(with_backbones(make_run(tmp_path), SQUEEZED, REAL_ONLY, other))
    names = [picture["aria-label"] for picture in write_and_parse(run, "training")[1].pictures["Training"]]
    assert [name.split(":")[0] for name in names if "Backbones" in name] == [
        "Backbones by squeeze_and_span",
        "Backbones by vicreg",
    ]


# --- the sentence -----------------------------------------------------------------------------------------------------


def sentence(*arms, **settings):
    return key_result(make_metrics({str(number): arm for number, arm in enumerate(arms)}, **settings))


def test_synthetic_data_that_does_not_help_is_not_said_to_help():
    worse = sentence(make_arm("real", 0.0, [90.0, 91.0]), make_arm("both", 0.5, [88.0, 89.0]))
    assert worse.startswith("Both does not beat real: a top-1 accuracy of 88.5 ± 0.7 % against 90.5 ± 0.7 %")
    equal = sentence(make_arm("real", 0.0, [90.0, 91.0]), make_arm("both", "union", [90.0, 91.0]))
    assert "Both does not beat real:" in equal
    within_noise = sentence(make_arm("real", 0.0, [88.0, 92.0]), make_arm("both", 0.5, [88.5, 92.5]))
    assert "does not beat real by more than the seeds differ" in within_noise


def test_lower_is_better_for_an_error():
    arms = make_arm("real", 0.0, [5.0, 5.2], name="mae"), make_arm("both", 1.0, [4.0, 4.2], name="mae")
    assert sentence(*arms, kind="regression", teacher=3.0) == (
        "Both reaches a mean absolute error of 4.10 ± 0.14 degrees against 5.10 ± 0.14 degrees for real; "
        "the teacher has 3.00 degrees."
    )
    assert "does not beat" in sentence(
        make_arm("real", 0.0, [4.0, 4.2], name="mae"), make_arm("both", 1.0, [5.0, 5.2], name="mae"), kind="regression"
    )


def test_arms_are_chosen_by_validation_and_not_by_test():
    lucky = make_arm("lucky", 0.5, [99.0, 99.0], validation=[80.0, 80.0])
    chosen = make_arm("chosen", 0.5, [92.0, 92.2], validation=[93.0, 93.0])
    real = make_arm("real", 0.0, [90.0, 90.2])
    assert sentence(real, lucky, chosen).startswith("Chosen reaches a top-1 accuracy of 92.10 ± 0.14 % against 90.10")


def test_without_a_counterpart_the_sentence_compares_with_the_teacher_alone():
    assert sentence(make_arm("real", 0.0, [90.0])) == "Real reaches a top-1 accuracy of 90.0 %; the teacher has 95.5 %."
    assert "against" not in sentence(make_arm("both", 0.5, [90.0]))


def backbone_sentence(*arms):
    return backbone_result(make_metrics({}, representation=make_representation(*arms)))


def test_the_sentence_on_backbones_is_as_honest_as_that_on_students():
    assert backbone_sentence(SQUEEZED, REAL_ONLY) == (
        "Squeezed reaches a linear-probe top-1 accuracy of 72.0 ± 1.4 % against 66.0 ± 1.4 % for two views; "
        "the untrained network has 41.0 ± 1.4 %."
    )
    close = make_backbone("close", 0.0, "simsiam", [70.5, 72.5])
    assert "Squeezed does not beat close by more than the seeds differ:" in backbone_sentence(SQUEEZED, close)
    better = make_backbone("better", 0.0, "simsiam", [80.0, 82.0])
    assert backbone_sentence(SQUEEZED, better).startswith("Squeezed does not beat better: a linear-probe")
    assert "Two views reaches a linear-probe top-1 accuracy of 66.0 ± 1.4 %; the" in backbone_sentence(REAL_ONLY)


def test_an_error_of_backbones_is_better_when_it_is_lower(tmp_path):
    directory, data, metrics = with_backbones(make_run(tmp_path, "regression"))
    representation = metrics["representation"]
    for values in (representation["untrained"], representation["protocols"]):
        values["ridge"], values["knn_20"] = values.pop("linear"), values.pop("knn_1")
    for name, arm in representation["arms"].items():
        parts = {part: {"ridge": arm[part]["linear"], "knn_20": arm[part]["knn_1"]} for part in ("test", "validation")}
        representation["arms"][name] = arm | parts
    html, page = write_and_parse((directory, data, metrics), "backbones")
    assert "Squeezed does not beat two views: a ridge-probe mean absolute error of 72.0 ± 1.4 degrees" in page.text
    assert "the untrained network has 41.0 ± 1.4 degrees" in page.text
    assert '<tr class="best"><td class="text">two views' in html and "ridge [degrees]" in html


def test_backbones_are_chosen_by_validation_and_not_by_test():
    lucky = make_backbone("lucky", 0.5, "squeeze_and_span", [99.0, 99.5], validation=[50.0, 50.0])
    assert backbone_sentence(lucky, SQUEEZED, REAL_ONLY).startswith("Squeezed reaches")


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        ([93.0, 93.848], 1),  # spread 0.60
        ([93.0, 93.3], 2),  # spread 0.21
        ([90.0, 99.0], 0),  # spread 6.4
        ([90.0, 91.7], 1),  # spread 1.2
        ([93.41], 1),  # none: three digits
        ([0.0123], 4),
        ([0.0], 2),
    ],
)
def test_decimals_follow_the_spread(values, decimals):
    assert num_decimals(make_metrics({"arm": make_arm("arm", 0.0, values)}), "top1") == decimals


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.6, "10 s"), (119.7, "2 min 0 s"), (3599.0, "59 min 59 s"), (3599.6, "1 h 0 min"), (7250, "2 h 1 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# --- the log ----------------------------------------------------------------------------------------------------------


def test_a_resumed_stage_counts_as_it_was_written_last(tmp_path):
    path = tmp_path / "metrics.jsonl"
    teacher = [("teacher", 50, 1.0), ("teacher", 100, 0.9), ("teacher", 150, 0.8), ("teacher", 100, 0.5)]
    lines = [*teacher[:2], ("other", 50, 7.0), *teacher[2:]]
    text = "\n".join(json.dumps({"stage": stage, "step": step, "loss": loss}) for stage, step, loss in lines)
    path.write_text(text + '\n{"stage": "teacher", "st')  # killed while it wrote
    counted = [(line["stage"], line["step"], line["loss"]) for line in read_log(path)]
    assert counted == [("teacher", 50, 1.0), ("teacher", 100, 0.5), ("other", 50, 7.0)]


def test_a_mean_curve_is_over_the_steps_that_all_have():
    assert mean_curve([([50, 100, 150], [1.0, 2.0, 3.0]), ([50, 100], [3.0, 6.0])]) == ([50, 100], [2.0, 4.0])
    assert mean_curve([([50], [1.0]), ([], [])]) == ([], [])


# --- rows and pictures ------------------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=30, unique=True),
    beyond=st.floats(-1e5, 1e5, width=32),
)
def test_every_scalar_label_is_in_one_row(labels, beyond):
    train = ImageSet(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
    rows = label_rows(train)
    labels = torch.cat([train.labels, torch.tensor([beyond])])
    assert len(rows) == LABEL_BINS
    assert torch.cat([row.members(labels) for row in rows]).sort().values.tolist() == list(range(len(labels)))


@pytest.mark.parametrize("num_classes", [2, MOST_ROWS, 100])
def test_many_classes_are_thinned_evenly(num_classes):
    names = tuple(f"class {label}" for label in range(num_classes))
    train = ImageSet(torch.zeros(num_classes, 1, 2, 2, dtype=torch.uint8), torch.arange(num_classes), class_names=names)
    rows = label_rows(train)
    assert len(rows) == min(num_classes, MOST_ROWS)
    assert (rows[0].title, rows[-1].title) == (names[0], names[-1])
    assert all(train.class_names[label] == row.title for row in rows for label in row.members(train.labels).tolist())


@pytest.mark.parametrize("channels", [1, 3])
def test_strips_show_every_pixel_as_it_is(channels):
    images = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tag = strip_to_png(images, 3, "a < b")
    picture = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1]))))
    picture = torch.from_numpy(picture.copy()).reshape(*picture.shape[:2], channels)
    factor = len(picture) // 8
    pitch = (picture.shape[1] - 8 * factor) // 2
    for place, image in enumerate(images):
        tile = picture[:, place * pitch : place * pitch + 8 * factor]
        for row in range(factor):
            assert torch.equal(tile[row::factor, row::factor].permute(2, 0, 1), image)
    assert (picture[:, 2 * pitch :] == 255).all()
    assert 'alt="a &lt; b"' in tag


def test_large_images_are_reduced():
    tag = strip_to_png(torch.zeros(1, 3, 600, 300, dtype=torch.uint8), 1, "tall")
    assert 'width="24" height="48"' in tag


@given(heights=st.lists(st.floats(-2, 2), min_size=1, max_size=8).map(sorted), distance=st.floats(0.01, 1))
def test_labels_are_spread_without_overlap_and_no_more_than_needed(heights, distance):
    moved = spread(heights, distance)
    gaps = [high - low for low, high in itertools.pairwise(moved)]
    assert all(gap >= distance - 1e-9 for gap in gaps)
    assert math.isclose(fmean(moved), fmean(heights), abs_tol=1e-9)
    if all(high - low >= distance for low, high in itertools.pairwise(heights)):
        assert moved == pytest.approx(heights)


def test_figures_leave_no_global_state():
    before = dict(matplotlib.rcParams)
    lines = [Line("a", [1, 2], [1.0, 0.5]), Line("b", [1, 2], [2.0, 0.5])]
    svg = figure_to_svg(plot_curves(lines, axis="loss"), "curves")
    figure_to_svg(plot_arms([Arm("arm", [1.0, 2.0], BLUE)], mark=(1.0, "teacher"), axis="accuracy"), "arms")
    assert dict(matplotlib.rcParams) == before
    assert ">a</text>" in svg and ">b</text>" in svg and "xmlns" not in svg and "<metadata" not in svg
