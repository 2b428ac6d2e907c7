"""Console of a run: progress bars, live curves, signals, the entry point of a stage's script."""
