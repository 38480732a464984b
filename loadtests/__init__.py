"""Load clients that the benchmarks, the fault harness and load tests share."""
