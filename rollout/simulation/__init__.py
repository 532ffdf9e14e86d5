"""The table world: training without a running model, in minutes, against a known optimum.

Scores and latencies come from a profile of every configuration on every sample. `table_fleet` takes
the place of the rollout actors; the loop, the controller, the learner and the rewards are the real
ones.
"""
