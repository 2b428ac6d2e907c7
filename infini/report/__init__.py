"""The comparison report: results into tables, sentences, plots, and one page."""
