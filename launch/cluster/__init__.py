"""Ray: actors that run groups, the learner's actor, and what happens when one is lost."""
