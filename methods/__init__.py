"""One file a distillation method; every file here is found by itself. See CONTRIBUTING.md."""
