"""Where cohorts are trained."""
