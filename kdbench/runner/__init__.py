"""Run a plan: the runner, its executors, the claims of several processes, and progress displays."""
