"""Lines of text to render: common English words, words that sound English, numbers, dates, prices, codes."""

from __future__ import annotations

import numpy as np

COMMON = tuple(
    """
    about above across action after again air all almost along also always among animal answer any area arm around art
    ask away back bad bank base beach bear beautiful because become bed before began behind best better between big bird
    black blue board boat body book both bottom box boy bread break bring brother brown build business buy call came
    can capital car care carry case catch cause cell center century certain chair chance change check child choose
    church circle city class clean clear clock close cloud coast cold color come common company compare complete
    contain control cook cool copy corn corner correct cost could count country course cover cross crowd cry current
    cut dance dark day dead deal dear decide deep degree design develop did differ direct discuss distant divide
    doctor does dog dollar done door double down draw dream dress drink drive drop dry during each early earth east
    easy edge effect egg eight either electric else end enemy energy engine english enough enter equal even evening
    event ever every exact example except expect experience eye face fact fair fall family famous far farm fast father
    favor feed feel few field fight figure fill final find fine finger finish fire first fish five floor flow flower fly
    follow food foot force forest form forward found four free fresh friend from front fruit full game garden gas
    general gentle girl give glass gold good govern grand grass great green ground group grow guess guide gun half hand
    happen happy hard have head hear heart heat heavy held help here high hill history hold hole home hope horse hot
    hour house how huge human hundred hunt hurry ice idea imagine inch include indicate industry insect instant
    interest iron island join joy jump just keep kept key kind king knew know lady lake land language large last late
    laugh law lay lead learn least leave left length less letter level lie life lift light like line list listen little
    live locate log lone long look lost loud love low machine made magnet main major make man many map mark market mass
    master match material matter mean measure meat meet melody men metal method middle might mile milk million mind mine
    minute miss mix modern moment money month moon more morning most mother motion mountain mouth move much music must
    name nation nature near necessary neck need neighbor never new next night nine noise noon north nose note nothing
    notice noun now number object observe ocean off offer office often old once one only open operate opposite order
    original other our over own oxygen page paint pair paper paragraph parent part party pass past path pattern pay
    people perhaps period person phrase picture piece place plain plan plane planet plant play please plural poem
    point poor populate port pose position possible pound power practice prepare present press pretty print probable
    problem process produce product proper property protect proud prove provide pull push put quart question quick quiet
    quite race radio rail rain raise ran range rather reach read ready real reason receive record red region remember
    repeat reply represent require rest result rich ride right ring rise river road rock roll room root rope rose round
    row rub rule run safe said sail salt same sand save saw say scale school science score sea search season seat second
    section seed seem segment select self sell send sense sent sentence separate serve set settle seven shape share
    sharp sheet shell shine ship shoe shop shore short should shoulder shout show side sight sign silent silver similar
    simple since sing single sister sit six size skill skin sky sleep slip slow small smell smile snow soft soil soldier
    solution solve some song soon sound south space speak special speech speed spell spend spoke spot spread spring
    square stand star start state station stay stead steam steel step stick still stone stood stop store story straight
    strange stream street stretch string strong student study subject substance success such sudden suffix sugar suggest
    suit summer sun supply support sure surface surprise swim syllable symbol system table tail take talk tall teach
    team teeth tell temperature ten term test thank that their them then there these they thick thin thing think third
    this those though thought thousand three through throw thus tie time tiny tire together told tone took tool top
    total touch toward town track trade train travel tree triangle trip trouble truck true try tube turn twenty two
    type under unit until use usual valley value vary verb very view village visit voice vowel wait walk wall want war
    warm was wash watch water wave way wear weather week weight well went were west what wheel when where which while
    white whole whose why wide wife wild will wind window wing winter wire wish with woman wonder wood word work world
    would write written wrong yard year yellow yes yet you young your
    """.split()  # noqa: SIM905
)
ONSETS = "b c d f g h k l m n p r s t v w br ch cl cr dr fl fr gr pl pr qu sh sl sp st str th tr".split()  # noqa: SIM905
VOWELS = "a e i o u a e o ai ea ee io oa oo ou".split()  # noqa: SIM905
CODAS = ["", "", "", "n", "r", "s", "t", "d", "m", "l", "nd", "nt", "st", "rk", "ck", "ng", "sh"]
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # noqa: SIM905


def _pick(rng: np.random.Generator, items: tuple[str, ...] | list[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _word(rng: np.random.Generator) -> str:
    if rng.random() < 0.9:
        word = _pick(rng, COMMON)
    else:
        parts = (_pick(rng, ONSETS) + _pick(rng, VOWELS) + _pick(rng, CODAS) for _ in range(int(rng.integers(1, 4))))
        word = "".join(parts)
    style = rng.random()
    return word if style < 0.65 else word.capitalize() if style < 0.97 else word.upper()


def _digits(rng: np.random.Generator, low: int, high: int) -> str:
    return "".join(str(int(d)) for d in rng.integers(0, 10, int(rng.integers(low, high + 1))))


def _number(rng: np.random.Generator) -> str:
    kind = int(rng.integers(7))
    if kind == 0:
        return str(int(rng.integers(1, 100_000)))
    if kind == 1:
        return f"${int(rng.integers(1, 1000))}.{_digits(rng, 2, 2)}"
    if kind == 2:
        return f"{int(rng.integers(1, 101))}%"
    if kind == 3:
        return f"{int(rng.integers(1, 13)):02d}/{int(rng.integers(1, 29)):02d}/{int(rng.integers(1950, 2030))}"
    if kind == 4:
        return f"{int(rng.integers(1, 29))}-{_pick(rng, MONTHS)}-{int(rng.integers(1950, 2030))}"
    if kind == 5:
        return f"{int(rng.integers(0, 24))}:{int(rng.integers(0, 60)):02d}"
    return f"{_pick(rng, list('ABCDEFGHKLMNPRSTUVWXYZ'))}{_pick(rng, list('ABCDEFGHKLMNPRSTUVWXYZ'))}-{_digits(rng, 3, 5)}"


def text_line(rng: np.random.Generator, longest: int = 24) -> str:
    """A line of 3 to ``longest`` characters: one to four words or numbers, some with punctuation."""
    while True:
        parts = [_number(rng) if rng.random() < 0.13 else _word(rng) for _ in range(int(rng.integers(1, 5)))]
        for i, part in enumerate(parts):
            if rng.random() < 0.15 and part[-1].isalnum():
                parts[i] += _pick(rng, list(",.:;!?"))
        line = " ".join(parts)
        if rng.random() < 0.05:
            line = f"({line})"
        if 3 <= len(line) <= longest:
            return line
