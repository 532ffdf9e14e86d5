import pickle

import numpy as np
import pytest

from rollout.group_rollout import GroupRollout

GOOD = {
    "group_id": 3,
    "split": "train",
    "index": 7,
    "sample_id": "a",
    "task": "vqa",
    "budget_ms": 200.0,
    "price": 0.1,
    "policy_version": 1,
    "policy_sha256": "0" * 64,
    "budget_token": np.zeros(6, np.float32),
    "language_feature": np.zeros(6, np.float32),
    "image_feature": np.zeros(9, np.float32),
    "actions": np.array([[0, 0, 0, 0], [2, 4, 4, 4]]),
    "log_probs": np.zeros((2, 4), np.float32),
    "latency_tokens": np.zeros((2, 6), np.float32),
    "scores": np.zeros(2, np.float32),
    "latencies_ms": np.array([150.0, 190.0]),
    "feasible": True,
    "clock": "wall",
    "device_budget_ms": 220.0,
    "device_ms": np.array([165.0, 209.0]),
    "wall_ms": np.array([170.0, 210.0]),
    "num_text_tokens": 12,
    "num_vision_tokens": np.array([144, 300]),
    "num_output_tokens": np.array([2, 3]),
    "tilings": ((1, 1), (1, 2)),
    "answers": ("yes", "no"),
    "stages_ms": ({"vision": 1.0}, {"vision": 2.0}),
    "actor": "rollout-0",
    "incarnation": 0,
}


def test_survives_pickling():
    group = pickle.loads(pickle.dumps(GroupRollout(**GOOD)))
    assert group.group_size == 2
    assert group.answers == ("yes", "no")
    assert (group.actions == GOOD["actions"]).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("actions", np.zeros((0, 4), np.int64), "has no episode"),
        ("actions", np.full((2, 4), 5), "choice indices, not knob values"),
        ("log_probs", np.zeros(2, np.float32), r"log_probs is float32 \[2\]"),
        ("latency_tokens", np.zeros((2, 5), np.float32), "latency_tokens"),
        ("scores", np.zeros(2), "scores is float64"),
        ("scored", np.zeros(3, np.float32), r"scored_actions is int64 \[0, 4\]"),
        ("image_feature", np.zeros((1, 9), np.float32), r"image_feature is float32 \[1, 9\]"),
        ("latencies_ms", np.zeros(2, np.float32), "latencies_ms is float32"),
        ("device_ms", np.zeros(2, np.float32), "device_ms is float32"),
        ("wall_ms", np.zeros(3), r"wall_ms is float64 \[3\]"),
        ("num_vision_tokens", np.zeros(2, np.int32), "num_vision_tokens is int32"),
        ("num_output_tokens", np.zeros(3, np.int64), r"num_output_tokens is int64 \[3\]"),
        ("answers", ("yes",), "1 answers for 2 episodes"),
        ("tilings", ((1, 1),), "1 tilings for 2 episodes"),
    ],
)
def test_wrong_fields_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        GroupRollout(**GOOD | {field: value})
