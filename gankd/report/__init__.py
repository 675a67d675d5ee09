"""What a finished run says: numbers (`tables`), pictures (`plots`) and the page that holds both (`page`)."""

from gankd.report.page import write_report

__all__ = ["write_report"]
