"""What looks at the rest from outside: benchmarks, dry runs."""
