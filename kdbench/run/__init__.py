"""Run a plan: which process trains what, what is written, and what a person sees meanwhile."""
