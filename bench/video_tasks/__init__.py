"""Published benchmarks of streaming video: their files, their questions, their scoring."""
