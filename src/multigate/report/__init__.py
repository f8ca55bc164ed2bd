"""A report: one HTML page about runs and comparisons that opens offline."""
