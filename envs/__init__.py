"""The vocabulary, the environment, the reward and the tasks; imports nothing of the other packages."""
