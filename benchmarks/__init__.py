"""Long runs: quality on real input and speed against named alternatives."""
