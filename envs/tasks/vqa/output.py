"""From a model's output to the string that is scored."""

from __future__ import annotations

from collections import Counter

ANSWER_MARK = "Answer:"


def scored_text(output: str) -> str:
    """The part of an output that Molmo's evaluation scores; letter case is kept.

    What follows the first "Answer:", up to a second one, with its inner spaces as they are.
    Without a mark, the most frequent line (the first one in a tie), else the whole output, with
    single spaces. Blank lines between others count as lines, so that two of them outvote two
    different answers.

    Source: allenai/molmo, olmo/eval/evaluators.py, VqaEval.
    """
    output = output.strip()
    if ANSWER_MARK in output:
        return output.split(ANSWER_MARK)[1].strip()
    lines = [" ".join(line.split()) for line in output.split("\n")]
    return Counter(lines).most_common(1)[0][0]
