"""A package, so that no other that is called scripts comes before scripts.benchmarks."""
