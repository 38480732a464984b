"""Load clients, shared by the benchmarks and the fault harness."""
