"""One table a file: a function from the results to a sheet, see `kdbench.report.model`."""
