"""From words to a plan, without torch."""
