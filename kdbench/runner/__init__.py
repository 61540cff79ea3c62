"""Run studies: from a study to jobs, the runner that alone writes, executors, locks, plugins and progress displays."""
