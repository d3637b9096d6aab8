"""The report of a study: its results as a page, tables, CSV files and figures."""
