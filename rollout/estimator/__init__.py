"""The standalone latency estimator: milliseconds from a configuration, without running it."""
