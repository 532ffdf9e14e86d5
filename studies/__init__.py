"""Studies of data and learning: the programs that made figures in the docs."""
