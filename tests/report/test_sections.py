"""The doors of the report: sections of strangers, sections that fail, and text that is never markup."""

import pytest
import torch

from gankd.report import SECTIONS, as_section
from gankd.report.plots import Arm, Line, figure_to_svg, plot_arms, plot_curves, plot_histogram
from gankd.report.sections import FinishedRun, drawn
from gankd.report.tables import print_tables
from gankd.report.text import number
from tests.report.test_report import (
    SQUEEZED,
    make_arm,
    make_metrics,
    make_representation,
    make_run,
    write_and_parse,
)

MARKUP = ["[/mm]", "[degrees]", "[bold]x", ":smile:", "$x$ and $", "<b>"]


@pytest.fixture
def sections():
    """The registry, given back as it was."""
    before = dict(SECTIONS)
    yield SECTIONS
    SECTIONS.clear()
    SECTIONS.update(before)


def test_ours_are_registered_in_the_order_of_the_page():
    ours = ["students", "backbones", "notes", "images", "generator", "selection", "training", "again"]
    assert list(SECTIONS) == ours


def test_a_section_of_a_user_stands_on_the_page_beside_ours_r5(sections, tmp_path):
    @sections.register("split")
    def split(run: FinishedRun) -> str:
        lines = {line["stage"] for line in run.log}
        assert run.directory == tmp_path and "generator" in lines
        return as_section("Mine", f"<p>{len(run.data.test)} test images of {run.metrics['name']}</p>")

    _, page = write_and_parse(make_run(tmp_path))
    assert "Mine" in page.text and "7 test images of trial" in page.text
    assert page.text.index("Run it again") < page.text.index("Mine")


def test_two_sections_of_one_name_are_refused(sections):
    with pytest.raises(ValueError, match="report section 'notes' .* exists already"):
        sections.register("notes")(lambda run: "")


def test_a_section_that_fails_says_why_in_its_place_and_ends_nothing_f27(sections, tmp_path):
    @sections.register("broken")
    def broken(run: FinishedRun) -> str:
        raise KeyError("<nothing>")

    sections.register("wrong")(lambda run: None)
    (tmp_path / "run").mkdir()
    directory, data, metrics = make_run(tmp_path / "run")
    (directory / "synthetic" / "scores.safetensors").unlink()
    with pytest.warns(UserWarning, match="not available"):
        html, page = write_and_parse((directory, data, metrics))
    assert "The section “broken” is not available: KeyError: '<nothing>'" in page.text and "<nothing>" not in html
    assert "The section “wrong” is not available: TypeError: it returned NoneType" in page.text
    assert "The section “selection” is not available: ValueError:" in page.text
    assert "Real + synthetic reaches" in page.text and "Run it again" in page.text


def test_an_interrupt_is_not_a_missing_section(sections):
    @sections.register("slow")
    def slow(run: FinishedRun) -> str:
        raise KeyboardInterrupt

    run = FinishedRun(None, None, make_metrics({}))
    with pytest.warns(UserWarning, match="not available"), pytest.raises(KeyboardInterrupt):
        list(drawn(run))


def test_a_run_without_teacher_generator_and_synthetic_images_has_its_report(tmp_path):
    """F4: what no arm reads is not built."""
    directory, data, metrics = make_run(tmp_path)
    metrics |= {"teacher": None, "synthesis": None, "generator": {"trained": True}}
    metrics["arms"].pop("both")
    _, page = write_and_parse((directory, data, metrics))
    assert "Real + KD reaches a top-1 accuracy of 90.5 ± 0.5 %." in page.text and "teacher (" not in page.text


# --- F23: text of users is never markup -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", MARKUP)
def test_brackets_dollars_and_colons_are_text_in_the_terminal_f23(capsys, text):
    metrics = make_metrics({"real": make_arm(text, 0.0, [90.0])}, representation=make_representation())
    metrics["representation"]["arms"] = {"one": {**SQUEEZED, "title": text}}
    metrics |= {"name": text, "generator": {"score_rows": [[text, "lower", text]]}}
    metrics["task"]["unit"] = text
    print_tables(metrics)
    assert capsys.readouterr().out.count(text) >= 6


@pytest.mark.parametrize("text", MARKUP)
def test_brackets_dollars_and_colons_are_text_in_the_charts_f23(text):
    escaped = text.replace("<", "&lt;").replace(">", "&gt;")
    figures = [
        plot_arms([Arm(text, [1.0, 2.0], "#000000")], mark=(1.0, text), axis=text),
        plot_curves([Line(text, [1, 2], [1.0, 2.0]), Line(text, [1, 2], [2.0, 3.0])], axis=text, logarithmic=True),
        plot_histogram(
            torch.rand(9), torch.arange(9) < 5, axis=text, kept_title=text, marks=torch.ones(1), mark_title=text
        ),
    ]
    for figure in figures:
        assert figure_to_svg(figure, text).count(escaped) >= 3


@pytest.mark.parametrize("text", MARKUP)
def test_a_title_a_unit_and_a_class_name_reach_the_page_as_they_are_f23(tmp_path, text):
    directory, data, metrics = make_run(tmp_path, title=text, notes=text)
    metrics["task"]["unit"] = text
    metrics["arms"]["real"]["title"] = text
    html, page = write_and_parse((directory, data, metrics))
    assert page.text.count(text) >= 6 and "is not available" not in html


# --- H: one seed has no spread ----------------------------------------------------------------------------------------


def test_one_seed_has_no_spread_anywhere_h(capsys, tmp_path):
    directory, data, metrics = make_run(tmp_path)
    for arm in metrics["arms"].values():
        arm |= make_arm(arm["title"], arm["synthetic"], [90.0])
    print_tables(metrics)
    assert "±" not in capsys.readouterr().out
    html, page = write_and_parse((directory, data, metrics))
    assert "±" not in html and "one seed, so that no spread is known" in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (-0.001, "0.00"),
        (93.456, "93.46"),
        (3.21e-9, "3.21e-09"),
        (-4e30, "-4e+30"),
        (12345.678, "12345.68"),
    ],
)
def test_very_small_and_very_large_numbers_stay_readable_f24(value, text):
    assert number(value, 2) == text
