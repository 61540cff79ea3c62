"""What travels between the other packages: plain dataclasses and files; no torch."""
