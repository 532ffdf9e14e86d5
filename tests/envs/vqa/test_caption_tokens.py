import pytest

from envs.tasks.vqa.caption_tokens import PUNCTUATION_TOKENS, caption_tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    # what pycocoevalcap's PTBTokenizer (Java) gives, recorded once
    [
        ("A man's hat (red) is on the table.", "a man 's hat -lrb- red -rrb- is on the table"),
        ("Don't stop--it's a t-shirt!", "do n't stop it 's a t-shirt"),
        (
            'He said "hello" to 3,000 people at 5 p.m. in the U.S.',
            "he said hello to 3,000 people at 5 p.m. in the u.s.",
        ),
        (
            "the cat's [bowl] {x} & a $5 bill; 50% off: and/or",
            "the cat 's -lsb- bowl -rsb- -lcb- x -rcb- & a $ 5 bill 50 % off and/or",
        ),
        ("two dogs' toys...", "two dogs toys"),
        ("`hi' ``there''", "hi there"),
        ("a “quoted” ‘word’ and – dash — em … dots", "a quoted word and dash em dots"),
        ("3.5 inch 1/2 cup A/C at 12:45", "3.5 inch 1/2 cup a/c at 12:45"),
        ("a red,white and blue kite #7 . \n", "a red white and blue kite # 7"),
        ("a dog.A cat", "a dog.a cat"),
        ("5 o'clock, really?! they've won't", "5 o'clock really ?! they 've wo n't"),
        ("the man’s cat isn’t ‘here’", "the man 's cat is n't here"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_tokens_equal_those_of_ptb(text: str, expected: str):
    assert caption_tokens(text) == expected.split()


def test_where_tokens_differ_from_ptb():
    assert caption_tokens("cannot") == ["cannot"]  # PTB: can not
    assert caption_tokens("Mr. Smith") == ["mr", "smith"]  # PTB: mr. smith


def test_seventeen_punctuation_tokens():
    assert len(PUNCTUATION_TOKENS) == 17
