"""The harness: one batch, one teacher forward, many students."""
