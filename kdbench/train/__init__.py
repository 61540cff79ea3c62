"""Training: one batch, one teacher forward, many students."""
