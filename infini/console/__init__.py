"""What a person sees of a run: bars, live curves, signals, the frame of a stage's script."""
