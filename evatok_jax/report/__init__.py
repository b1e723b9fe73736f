"""Figures and the HTML page that shows what a pipeline made."""

from evatok_jax.report.page import write_report

__all__ = ["write_report"]
