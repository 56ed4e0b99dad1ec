"""Pass specs: parsing, formatting, and the check of options against a dataclass."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import UsageError
from graphprune.spec import PassSpec, format_pass_spec, instantiate, options_of, parse_pass_spec


class Norm(enum.Enum):
    L1 = 1
    L2 = 2


@dataclass(frozen=True)
class Demo:
    """A pass with an option of every type."""

    name: ClassVar[str] = "demo"
    bins: int = 64
    ratio: float = 0.5
    strict: bool = False
    label: str = "plain"
    reading: Literal["bn", "conv", "none"] = "bn"
    floor: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    norm: Norm = Norm.L1
    path: Path | None = None
    weights: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, not {self.bins}")


@dataclass(frozen=True)
class Needy:
    """A pass with an option that has no default."""

    teacher: str


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("l1", "l1", {}),
        ("l1{}", "l1", {}),
        ("bn-scale{ }", "bn-scale", {}),
        ("entropy{bins=64,reading=bn}", "entropy", {"bins": 64, "reading": "bn"}),
        (" entropy { bins = 64 , reading = bn } ", "entropy", {"bins": 64, "reading": "bn"}),
        ("p{a=-1,b=+2,c=0}", "p", {"a": -1, "b": 2, "c": 0}),
        ("p{a=1e-3,b=.5,c=2.,d=inf}", "p", {"a": 1e-3, "b": 0.5, "c": 2.0, "d": float("inf")}),
        ("p{a=true,b=False,c=none}", "p", {"a": True, "b": False, "c": None}),
        ("p{a='64',b=\"true\",c='it\\'s'}", "p", {"a": "64", "b": "true", "c": "it's"}),
        ("p{a=007,b=two words,c=/data/my-file_1.onnx}", "p",
         {"a": "007", "b": "two words", "c": "/data/my-file_1.onnx"}),
        ("p{a=[],b=[1, 2.5,x]}", "p", {"a": [], "b": [1, 2.5, "x"]}),
        ("p{c=[[1,2],['a,b']]}", "p", {"c": [[1, 2], ["a,b"]]}),
        ("p{keep-last=3}", "p", {"keep_last": 3}),
    ],
)  # fmt: skip
def test_parse(text: str, name: str, options: dict[str, object]) -> None:
    spec = parse_pass_spec(text)
    assert spec == PassSpec(name, options)
    assert {k: type(v) for k, v in spec.options.items()} == {k: type(v) for k, v in options.items()}


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("", "expected the name of a pass, found the end", 0),
        ("{bins=1}", "expected the name of a pass", 0),
        ("64", "expected the name of a pass", 0),
        ("entropy{bins}", "expected '=' and a value after option 'bins', found '}'", 12),
        ("entropy{bins=}", "expected a value for option 'bins', found '}'", 13),
        ("entropy{bins=64", "'{' is never closed", 7),
        ("entropy{", "'{' is never closed", 7),
        ("entropy{bins=64,,a=1}", "name of an option after ','", 16),
        ("entropy{bins=64,}", "name of an option after ','", 16),
        ("entropy{bins=64 reading=bn}", "expected ',' or '}', found '='", 23),
        ("entropy{bins=1,bins=2}", "option 'bins' is given twice", 15),
        ("entropy{=1}", "expected the name of an option, found '='", 8),
        ("entropy{a=[1,2}", "expected ',' or ']', found '}'", 14),
        ("entropy{a=[1,2", "'[' is never closed", 10),
        ("entropy{a=[1,,2]}", "expected a list item after ','", 13),
        ("entropy{a='x}", "quote is never closed", 10),
        ("entropy{a='\\q'}", "unknown escape", 11),
        ("entropy{a=1} x", "expected the end of the pass spec, found 'x'", 13),
        ("entropy}", "expected the end of the pass spec, found '}'", 7),
        ("entropy bins=64", "expected the end of the pass spec, found 'b'", 8),
        ("p{a=" + "[" * 500, "nested more than", 24),
    ],
)
def test_parse_error_points_into_the_text(text: str, message: str, column: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pass_spec(text)
    first, shown, caret = str(caught.value).split("\n")
    assert message in first
    assert caret.index("^") == column + 4
    assert shown.startswith("    " + text[:40])


def test_caret_stays_right_in_a_long_text_with_control_characters() -> None:
    text = "p{a='" + "\t\n" * 200 + "',b=}"
    with pytest.raises(UsageError) as caught:
        parse_pass_spec(text)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert len(lines[1]) < 120
    assert lines[1][lines[2].index("^")] == "}"


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)


@given(_names, st.dictionaries(_names, _values, max_size=4))
def test_round_trip(name: str, options: dict[str, object]) -> None:
    spec = PassSpec(name, options)  # type: ignore[arg-type]
    again = parse_pass_spec(format_pass_spec(spec))
    assert again == spec
    assert repr(again) == repr(spec)  # 1, 1.0 and True are equal, but not the same option


@given(st.text(alphabet="ab1.{}[]='\"\\, \n-", max_size=30))
def test_any_text_parses_or_is_a_usage_error(text: str) -> None:
    try:
        spec = parse_pass_spec(text)
    except UsageError as error:
        assert "^" in str(error)
    else:
        assert parse_pass_spec(format_pass_spec(spec)) == spec


@pytest.mark.parametrize(
    ("text", "field_name", "value"),
    [
        ("demo", "bins", 64),
        ("demo{bins=8}", "bins", 8),
        ("demo{bins=1e3}", "bins", 1000),
        ("demo{ratio=1}", "ratio", 1.0),
        ("demo{strict=true}", "strict", True),
        ("demo{strict=1}", "strict", True),
        ("demo{label=12}", "label", "12"),
        ("demo{label=true}", "label", "true"),
        ("demo{reading=conv}", "reading", "conv"),
        ("demo{reading=none}", "reading", "none"),
        ("demo{floor=none}", "floor", None),
        ("demo{floor=3}", "floor", 3),
        ("demo{sizes=[3,4,5]}", "sizes", (3, 4, 5)),
        ("demo{sizes=7}", "sizes", (7,)),
        ("demo{sizes=[]}", "sizes", ()),
        ("demo{pair=[3,4]}", "pair", (3, 4.0)),
        ("demo{norm=L2}", "norm", Norm.L2),
        ("demo{path=a/b.onnx}", "path", Path("a/b.onnx")),
        ("demo{weights=[1,2]}", "weights", [1.0, 2.0]),
    ],
)
def test_instantiate(text: str, field_name: str, value: object) -> None:
    made = getattr(instantiate(Demo, parse_pass_spec(text).options), field_name)
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("demo{bin=8}", ["pass 'demo' has no option 'bin'", "did you mean 'bins'?", "ratio: float = 0.5"]),
        ("demo{zzzzzz=8}", ["has no option 'zzzzzz'\n", "bins: int = 64"]),
        ("demo{bins=many}", ["option 'bins' is int, not many"]),
        ("demo{bins=1.5}", ["option 'bins' is int, not 1.5"]),
        ("demo{bins=true}", ["option 'bins' is int, not true"]),
        ("demo{bins=inf}", ["option 'bins' is int, not inf"]),
        ("demo{ratio=nan}", ["option 'ratio' is float, not nan"]),
        ("demo{ratio=1" + "0" * 400 + "}", ["option 'ratio' is float"]),
        ("demo{strict=2}", ["option 'strict' is bool, not 2"]),
        ("demo{label=[a]}", ["option 'label' is text, not [a]"]),
        ("demo{label=1.5}", ["option 'label' is text, not 1.5"]),
        ("demo{reading=con}", ["is bn|conv|none, not con; did you mean 'conv'?"]),
        ("demo{floor=x}", ["option 'floor' is int|none, not x"]),
        ("demo{sizes=[1,x]}", ["option 'sizes' is list of int, not [1,x]"]),
        ("demo{pair=[1]}", ["option 'pair' is [int,float], not [1]"]),
        ("demo{norm=L3}", ["option 'norm' is L1|L2, not L3"]),
        ("demo{bins=0}", ["pass 'demo': bins must be at least 1, not 0"]),
    ],
)
def test_instantiate_refuses(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        instantiate(Demo, parse_pass_spec(text).options)
    for part in parts:
        assert part in str(caught.value)


def test_missing_option_is_named() -> None:
    with pytest.raises(UsageError, match=r"needs option 'teacher': write teacher=\.\.\."):
        instantiate(Needy, {})
    assert instantiate(Needy, {"teacher": "big.onnx"}) == Needy("big.onnx")


def test_options_are_described_and_their_defaults_read_back() -> None:
    infos = options_of(Demo)
    assert [info.name for info in infos][:3] == ["bins", "ratio", "strict"]
    assert str(infos[6]) == "sizes: list of int = [1,2]"
    text = "demo{" + ",".join(f"{info.name}={info.default}" for info in infos) + "}"
    assert instantiate(Demo, parse_pass_spec(text).options) == Demo()
    assert options_of(Needy)[0].default is None
