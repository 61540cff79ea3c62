"""The command line: arguments -> study -> plan -> records -> report. A command a file; `run` is the default."""
