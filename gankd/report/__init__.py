"""What a finished run says: numbers (`tables`), pictures (`plots`) and the page of sections that holds both (`page`)."""

from gankd.report.html import as_facts, as_figure, as_section, as_table
from gankd.report.page import write_report
from gankd.report.sections import SECTIONS, FinishedRun

__all__ = ["SECTIONS", "FinishedRun", "as_facts", "as_figure", "as_section", "as_table", "write_report"]
