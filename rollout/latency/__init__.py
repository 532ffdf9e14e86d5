"""The clock, the hooks that use it, profile records and the standalone latency estimator."""
