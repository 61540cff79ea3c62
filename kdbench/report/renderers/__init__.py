"""One output a file: a function from a sheet to a document. None knows a table by name."""
