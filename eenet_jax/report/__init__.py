"""Tables and figures from what the other steps wrote."""

from eenet_jax.report.report import experiments_section, print_table, write_report

__all__ = ["experiments_section", "print_table", "write_report"]
