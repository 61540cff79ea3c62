"""Predictions of trained networks, and the measures and figures that compare them."""
