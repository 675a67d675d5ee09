"""What an honest judge finds in the generator, beside what whoever helped it says, in a report."""

from html import escape

import torch

from gankd.fidelity.judge import JUDGED_HEAD
from gankd.report.html import as_figure, as_section, as_table
from gankd.report.images import IMAGES_PER_ROW, images_table, label_head, label_rows, strip
from gankd.report.sections import FinishedRun
from gankd.report.text import capital
from gankd.synthesis.store import read_tensors

CAPTION = """Real images: the labels are those of validation images; distance, density and coverage are those of as many
training images against them; the student learnt from as many training images. The judge's features are those of a network
that had no part in the generator's training."""


def judge_section(run: FinishedRun) -> str:
    judged = run.metrics["generator"]["judged"]
    notes = [f"<p>{escape(capital(sentence))}</p>" for sentence in judged["warnings"]]
    table = as_table(JUDGED_HEAD, judged["rows"], (0, 1))
    caption = f'<p class="aside">{escape(CAPTION)}</p>'
    return as_section("The generator, judged", *notes, table, caption, neighbours_figure(run))


def neighbours_figure(run: FinishedRun) -> str:
    """Generated images over the nearest real ones, label by label; "" where nobody looked for them."""
    path = run.directory / "judged" / "neighbours.safetensors"
    if not path.exists():
        return ""
    known, body = read_tensors(path), []
    for row in label_rows(run.data.train):
        members = row.members(known["labels"])[: IMAGES_PER_ROW // 2]
        if len(members):
            pair = torch.stack([known["images"][members], known["nearest"][members]], dim=1).flatten(0, 1)
            body.append(
                [row.title, strip(pair, f"generated images and their nearest training images, label {row.title}")]
            )
    caption = "Generated images, each followed by its nearest training image in the features of the judge."
    head = [label_head(known["labels"], run.metrics["task"]["unit"]), "generated, nearest training image, ..."]
    return as_figure(images_table(head, body), caption, "grid")
