"""Speed benchmarks: programs that measure how fast this project runs."""
