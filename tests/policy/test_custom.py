"""Capabilities that an embedder makes up: what one may be, and what it covers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade import Amount, Policy, PolicyError
from tests._examples import examples

if TYPE_CHECKING:
    from stockade.policy._custom import Custom

CUSTOM: dict[str, Custom] = {
    "on": True,
    "off": False,
    "threads": Amount(4, 1, 8),
    "offset": Amount(0, -0.5, 0.5),
    "region": "eu",
    "nothing": "",
    "models": ("small", "large"),
    "none of them": (),
}
POLICY = Policy(custom=CUSTOM)  # type: ignore[arg-type]
MAX = 2**53

# What is asked for, and by which capabilities it is covered.
ASKED: list[tuple[object, set[str]]] = [
    (True, {"on"}),
    (False, set()),
    (1, {"threads"}),
    (4, {"threads"}),
    (4.0, {"threads"}),
    (2.5, {"threads"}),
    (0.999, set()),
    (4.001, set()),
    (8, set()),
    (9, set()),
    (0, {"offset"}),
    (-0.5, {"offset"}),
    (0.5, set()),
    (-0.6, set()),
    (-1, set()),
    (10**400, set()),
    (-(10**400), set()),
    (math.nan, set()),
    (math.inf, set()),
    (-math.inf, set()),
    ("eu", {"region"}),
    ("EU", set()),
    ("e", set()),
    ("eu ", set()),
    ("", {"nothing"}),
    ("small", {"models"}),
    ("large", {"models"}),
    ("smal", set()),
    ("small,large", set()),
    ("True", set()),
    ("4", set()),
    ("*", set()),
    (None, set()),
    (b"eu", set()),
    (("small",), set()),
    (["small"], set()),
    ({}, set()),
    (..., set()),
]


@pytest.mark.parametrize(("asked", "covered"), ASKED, ids=lambda value: repr(value)[:20])
def test_what_capabilities_cover(asked: object, covered: set[str]) -> None:
    """Each kind covers what it says, exactly, and nothing that merely looks like it."""
    assert {name for name in CUSTOM if POLICY.grants(name, asked)} == covered  # type: ignore[arg-type]


def test_a_capability_by_itself_is_asked_whether_it_is_on() -> None:
    """Without more, what is asked is whether something is switched on."""
    assert {name for name in CUSTOM if POLICY.grants(name)} == {"on"}


@pytest.mark.parametrize("name", ["missing", "ON", "on ", "", "off"])
@pytest.mark.parametrize("asked", [True, False, 0, 1, "", "on", None], ids=repr)
def test_what_is_not_set_covers_nothing(name: str, asked: object) -> None:
    """Attack: a host function asks for a capability that nobody granted, or under a name that is nearly right."""
    assert not POLICY.grants(name, asked)  # type: ignore[arg-type]
    assert not Policy().grants(name, asked)  # type: ignore[arg-type]


def test_capabilities_are_added_and_found() -> None:
    """What is set can be looked up, and a policy with another one is another policy."""
    policy = Policy().replace(custom={"gpu": True})
    more = policy.replace(custom={**policy.custom, "threads": Amount(2, 1, 4)})

    assert policy.custom == {"gpu": True}
    assert more.custom == {"gpu": True, "threads": Amount(2, 1, 4)}
    assert more.custom["threads"] == Amount(2, 1, 4)
    assert "threads" not in policy.custom
    assert policy.digest != more.digest


def test_capabilities_cannot_be_widened_afterwards() -> None:
    """Attack: a host function that is handed a policy changes what it grants."""
    with pytest.raises(TypeError) as caught:
        POLICY.custom["off"] = True
    assert str(caught.value) == "a policy cannot be changed: make another one with replace()"
    number = POLICY.custom["threads"]
    with pytest.raises(AttributeError):
        number.value = 8  # type: ignore[union-attr]
    models = ["small"]
    policy = Policy(custom={"models": models})  # type: ignore[arg-type]
    models.append("large")
    assert not policy.grants("models", "large")


# -- how they are written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("true", True),
        ("false", False),
        ("'eu'", "eu"),
        ("''", ""),
        ("[]", ()),
        ("['small', 'large', 'small']", ("small", "large")),
        ("{ value = 4, min = 1, max = 8 }", Amount(4, 1, 8)),
        ("{ value = 1, min = 1, max = 1 }", Amount(1, 1, 1)),
        ("{ value = -0.5, min = -1, max = 1e3 }", Amount(-0.5, -1, 1000)),
    ],
)
def test_capabilities_in_documents(written: str, kept: object) -> None:
    """True or false, text, a list of texts, or a number with its bounds; and TOML gives it back."""
    policy = Policy.loads(f"[custom]\ngpu = {written}")

    assert policy.custom == {"gpu": kept}
    assert type(policy.custom["gpu"]) is type(kept)
    assert Policy.loads(policy.to_toml()) == policy


WHAT = "it must be true or false, text, a list of texts, or a table of value, min and max"
BOUNDS = "a number needs bounds, such as { value = 4, min = 1, max = 8 }"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("gpu = 4", f"custom.gpu is 4: {BOUNDS}"),
        ("gpu = 4.5", f"custom.gpu is 4.5: {BOUNDS}"),
        ("gpu = nan", f"custom.gpu is nan: {BOUNDS}"),
        ("gpu = 1979-05-27", f"custom.gpu is datetime.date(1979, 5, 27): {WHAT}"),
        ("gpu = [1]", "custom.gpu[0] is 1: it must be text"),
        ("gpu = ['a', true]", "custom.gpu[1] is True: it must be text"),
        ("gpu = [['a']]", "custom.gpu[0] is ['a']: it must be text"),
        ('gpu = "a\\u0000"', r"custom.gpu is 'a\x00': it must be text"),
        ("gpu = {}", "custom.gpu is {}: a number has value, min and max, and nothing else"),
        (
            "gpu = { value = 4, min = 1 }",
            "custom.gpu is {'value': 4, 'min': 1}: a number has value, min and max, and nothing else",
        ),
        (
            "gpu = { value = 4, min = 1, max = 8, step = 1 }",
            (
                "custom.gpu is {'value': 4, 'min': 1, 'max': 8, 'step': 1}: "
                "a number has value, min and max, and nothing else"
            ),
        ),
        ("gpu.a = true", "custom.gpu is {'a': True}: a number has value, min and max, and nothing else"),
        (
            "gpu = { value = 9, min = 1, max = 8 }",
            "custom.gpu: value is 9: it must be between min and max, 1 and 8",
        ),
        (
            "gpu = { value = 0, min = 1, max = 8 }",
            "custom.gpu: value is 0: it must be between min and max, 1 and 8",
        ),
        (
            "gpu = { value = 4, min = 8, max = 1 }",
            "custom.gpu: value is 4: it must be between min and max, 8 and 1",
        ),
        (
            "gpu = { value = '4', min = 1, max = 8 }",
            "custom.gpu: value is '4': it must be a number between -2^53 and 2^53",
        ),
        (
            "gpu = { value = true, min = 0, max = 8 }",
            "custom.gpu: value is True: it must be a number between -2^53 and 2^53",
        ),
        (
            "gpu = { value = 4, min = -inf, max = 8 }",
            "custom.gpu: min is -inf: it must be a number between -2^53 and 2^53",
        ),
        (
            "gpu = { value = 4, min = 1, max = nan }",
            "custom.gpu: max is nan: it must be a number between -2^53 and 2^53",
        ),
        ("'' = true", "a name in custom is '': it must be a name"),
        ('"\\u001b[31m" = 4', rf"custom.\x1b[31m is 4: {BOUNDS}"),
    ],
)
def test_wrong_shapes_are_named(written: str, message: str) -> None:
    """Wrong shapes are named."""
    with pytest.raises(PolicyError) as caught:
        Policy.loads(f"[custom]\n{written}")

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        (3, "custom is 3: it must be a table of capabilities"),
        (None, "custom is None: it must be a table of capabilities"),
        ([("a", True)], "custom is [('a', True)]: it must be a table of capabilities"),
        ({1: True}, "a name in custom is 1: it must be a name"),
        ({"a": None}, f"custom.a is None: {WHAT}"),
        ({"a": b"eu"}, f"custom.a is b'eu': {WHAT}"),
        ({"a": {"x"}}, f"custom.a is {{'x'}}: {WHAT}"),
        ({"a": 4}, f"custom.a is 4: {BOUNDS}"),
        ({"a": "\ud800"}, r"custom.a is '\ud800': it must be text"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_wrong_shapes_in_python_are_named(custom: object, message: str) -> None:
    """The same where a policy is made in Python."""
    with pytest.raises(PolicyError) as caught:
        Policy(custom=custom)  # type: ignore[arg-type]

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 1, 8), "value is 9: it must be between min and max, 1 and 8"),
        ((0, 1, 8), "value is 0: it must be between min and max, 1 and 8"),
        ((4, 8, 1), "value is 4: it must be between min and max, 8 and 1"),
        ((1.5, 2, 8), "value is 1.5: it must be between min and max, 2 and 8"),
        ((True, 0, 1), "value is True: it must be a number between -2^53 and 2^53"),
        (("4", 1, 8), "value is '4': it must be a number between -2^53 and 2^53"),
        ((None, 1, 8), "value is None: it must be a number between -2^53 and 2^53"),
        ((math.nan, 0, 1), "value is nan: it must be a number between -2^53 and 2^53"),
        ((0, 0, math.inf), "max is inf: it must be a number between -2^53 and 2^53"),
        ((0, -MAX - 1, 0), f"min is {-MAX - 1}: it must be a number between -2^53 and 2^53"),
        ((10**400, 0, 1), "value is a huge number: it must be a number between -2^53 and 2^53"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_numbers_are_inside_their_bounds(arguments: tuple[float, float, float], message: str) -> None:
    """A value below or above its bounds is refused, and so are bounds that no float holds exactly."""
    with pytest.raises(PolicyError) as caught:
        Amount(*arguments)

    assert str(caught.value) == message


def test_bounds_belong_to_what_is_allowed() -> None:
    """The positive twin, at the borders."""
    assert Amount(1, 1, 8).value == 1.0
    assert Amount(8, 1, 8).value == 8.0
    assert Amount(MAX, -MAX, MAX) == Amount(float(MAX), float(-MAX), float(MAX))


_NUMBERS = st.integers(-MAX, MAX) | st.floats(-MAX, MAX)
_NUMERICS = st.tuples(_NUMBERS, _NUMBERS, _NUMBERS).map(sorted).map(lambda ends: Amount(ends[1], ends[0], ends[2]))
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_CUSTOM = st.booleans() | _TEXTS | st.lists(_TEXTS, max_size=3, unique=True).map(tuple) | _NUMERICS


@settings(max_examples=examples(200))
@given(st.dictionaries(_TEXTS.filter(bool), _CUSTOM, max_size=4))
def test_any_capabilities_survive_a_document(custom: dict[str, Custom]) -> None:
    """What is written is what is read, to the last digit."""
    policy = Policy(custom=custom)  # type: ignore[arg-type]

    assert Policy.loads(policy.to_toml()) == policy
    assert Policy.loads(policy.to_toml()).digest == policy.digest


@settings(max_examples=examples(200))
@given(_NUMERICS, _NUMBERS)
def test_a_number_covers_what_lies_between_its_least_and_what_is_granted(granted: Amount, asked: float) -> None:
    """The most that may ever be granted is not what is granted."""
    policy = Policy(custom={"amount": granted})  # type: ignore[arg-type]

    assert policy.grants("amount", asked) is (granted.min <= asked <= granted.value)
    assert policy.grants("amount", granted.value)
    assert policy.grants("amount", granted.min)
    assert policy.grants("amount", granted.max) is (granted.max == granted.value)
