"""Tasks with a known shortcut, and what is tried against it: the parts of benchmarks/suppression.py."""
