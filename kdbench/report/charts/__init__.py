"""One chart a file: a function from the results and a (dataset, recipe) to a figure, see `kdbench.report.model`."""
