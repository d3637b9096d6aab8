"""A study's results as a page, tables, CSV files and figures."""
