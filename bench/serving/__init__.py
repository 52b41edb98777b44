"""What is measured of the engine: one file per figure, all run by `bench.serve`."""
