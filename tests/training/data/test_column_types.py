"""What the texts of a column are, by majority; and what is said about it."""

import polars as pl
import pytest

from training.core.errors import CannotTrain
from training.data.column_types import ColumnKinds, TypeRules, infer_types


def infer(rules=TypeRules(), *, from_text=True, **columns):  # noqa: B008
    frame = pl.DataFrame({name: pl.Series(name, texts, dtype=pl.String) for name, texts in columns.items()})
    typed = infer_types(frame, rules, from_text=from_text)
    return {column.name: column for column in typed.columns}, typed


def numbers(count, *odd):
    return [*(f"{i}.5" for i in range(count - len(odd))), *odd]


def test_a_few_odd_values_do_not_make_numbers_categories_but_are_missing_and_counted():
    columns, typed = infer(b=numbers(600, "-"), c=numbers(600, "12 kg", "12 kg", "inf"))

    assert columns["b"].dtype == columns["c"].dtype == pl.Float64
    assert (columns["b"].null_count(), columns["c"].null_count()) == (1, 3)
    assert typed.warnings == [
        "Column 'b': 1 of 600 values is not a number ('-') and counts as missing. If the column contains codes, name "
        "it in --categories.",
        "Column 'c': 3 of 600 values are not numbers ('12 kg', 'inf') and count as missing. If the column contains "
        "codes, name it in --categories.",
    ]
    assert typed.missing_texts == {"b": ("-",), "c": ("inf",)}


@pytest.mark.parametrize(("odd", "is_number"), [(10, True), (11, False)])
def test_up_to_a_tenth_may_be_odd(odd, is_number):
    columns, typed = infer(b=numbers(100, *["?!"] * odd))

    assert columns["b"].dtype.is_numeric() == is_number
    assert ("counts as missing" in typed.warnings[0] or "count as missing" in typed.warnings[0]) == is_number
    if not is_number:
        assert typed.warnings == [
            "Column 'b' is read as categories, because 11 of its 100 values are not numbers ('?!'); to count these as "
            "missing, name it in --numbers."
        ]


def test_up_to_half_may_be_odd_if_the_user_names_the_column():
    columns, _ = infer(TypeRules(ColumnKinds(numbers=("b",))), b=numbers(100, *["?!"] * 40))

    assert columns["b"].null_count() == 40


def test_values_with_units_are_said_to_be_no_plain_numbers():
    _, typed = infer(b=[f"{i} kg" for i in range(100)], c=[f"USD {i}.50" for i in range(100)])

    assert [
        "not plain numbers ('0 kg')" in typed.warnings[0],
        "not plain numbers ('USD 0.50')" in typed.warnings[1],
    ] == [
        True,
        True,
    ]
    assert list(typed.category_notes.values()) == typed.warnings


@pytest.mark.parametrize(
    ("texts", "expected", "sentence"),
    [
        (
            ["$73.35", "$1,200.00", "-$5", "$-5.5"],
            [73.35, 1200, -5, -5.5],
            "the sign $ is left out; '$73.35' is read as",
        ),
        (["12 %", "7 %"], [12, 7], "the sign % is left out; '12 %' is read as 12, and requests must write it so."),
        (["1,2%", "0,75 %"], [1.2, 0.75], "the sign % is left out; '1,2%' is read as 1.2, and requests must"),
        (["1.000,50\u00a0€", "3,20 €"], [1000.5, 3.2], "'1.000,50\u00a0€' is read as 1000.50"),
        (["£ 5"] * 20 + ["5", "-"], [5] * 21 + [None], "must write it so. 1 number without it was read alike."),
        (["¥5"] * 19 + ["€5"], [5] * 19 + [None], "the sign ¥ is left out"),
    ],
)
def test_a_sign_that_nearly_all_numbers_have_is_left_out_and_named(texts, expected, sentence):
    columns, typed = infer(b=texts)

    assert columns["b"].to_list() == expected
    assert any(sentence in warning for warning in typed.warnings)


def test_signs_stay_in_classes_and_categories_and_in_columns_of_several():
    grades = ["5 %", "10 %"] * 50
    mixed = ["$5", "€5"] * 50

    target, typed = infer(TypeRules(target="b"), b=grades)
    named, _ = infer(TypeRules(ColumnKinds(categories=("b",))), b=grades)

    assert target["b"].to_list() == named["b"].to_list() == grades
    assert typed.warnings == []
    assert infer(b=mixed)[0]["b"].to_list() == mixed
    assert infer(TypeRules(target="b"), b=[f"${i}" for i in range(100)])[0]["b"].to_list() == list(range(100))


def test_numbers_with_leading_zeros_are_codes_even_if_only_one_is():
    columns, typed = infer(zip=["10115", "01067"], amount=["0.5", "-0.25"])

    assert columns["zip"].to_list() == ["10115", "01067"]
    assert columns["amount"].to_list() == [0.5, -0.25]
    assert typed.warnings == [
        "Column 'zip' is read as categories, since it contains numbers with leading zeros ('01067'), as codes have."
    ]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["12,5", "7"], [12.5, 7]),
        (["1.234,5", "0,5"], [1234.5, 0.5]),
        (["1,234.5", "7"], [1234.5, 7]),
        (["1,234,567", "7"], [1234567, 7]),
        (["1 234,5", "1\u00a0234"], [1234.5, 1234]),
        (["1'234.50", "1\u2019234"], [1234.5, 1234]),
        (["\u22125", "+7", "1e3", ".5"], [-5, 7, 1000, 0.5]),
        (["1.234", "2.5"], [1.234, 2.5]),
        (["1.234", "5.678"], [1.234, 5.678]),
    ],
)
def test_decimal_commas_and_thousands_are_recognised(texts, expected):
    assert infer(b=texts)[0]["b"].to_list() == expected


def test_what_one_column_leaves_open_another_decides():
    german, typed = infer(a=["12,5", "7"], b=["1.234", "5.678"], c=["1,234", "5,678"])
    english, _ = infer(a=["12.5", "7"], b=["1.234", "5.678"], c=["1,234", "5,678"])

    assert (german["b"].to_list(), german["c"].to_list()) == ([1234, 5678], [1.234, 5.678])
    assert (english["b"].to_list(), english["c"].to_list()) == ([1.234, 5.678], [1234, 5678])
    assert typed.warnings == [
        "Commas are read as decimal commas in 2 columns (a, c): '12,5' is 12.5, and requests must write it so.",
        "Thousands are separated in column 'b': '1.234' is 1234, and requests must write it so.",
    ]


def test_thousands_beside_decimal_commas_are_said_too():
    _, typed = infer(b=["12,5", "1.234", "1.234,5"])

    assert typed.warnings == [
        "Commas are read as decimal commas in column 'b': '12,5' is 12.5, and requests must write it so.",
        "Thousands are separated in column 'b': '1.234' is 1234, and requests must write it so.",
    ]


def test_a_comma_that_may_be_either_is_refused_unless_the_user_says_what_it_is():
    with pytest.raises(CannotTrain, match=r"Column 'b' contains numbers like '1,234'.*--decimal \. or --decimal ,"):
        infer(b=["1,234", "5,678"])

    assert infer(TypeRules(decimal=","), b=["1,234", "5,678"])[0]["b"].to_list() == [1.234, 5.678]
    assert infer(TypeRules(decimal="."), b=["1,234", "5,678"])[0]["b"].to_list() == [1234, 5678]
    assert infer(TypeRules(ColumnKinds(categories=("b",))), b=["1,234", "5,678"])[0]["b"].dtype == pl.String


def test_whole_numbers_of_any_length_are_never_rounded():
    ids = [f"1014633501899620{i:02d}774" for i in range(50)]

    columns, typed = infer(account=ids)

    assert columns["account"].to_list() == ids
    assert "whole numbers of up to 21 digits" in typed.warnings[0]
    assert infer(TypeRules(ColumnKinds(numbers=("account",))), account=ids)[0]["account"].dtype == pl.Float64


def test_categories_that_the_user_names_keep_every_value():
    rules = TypeRules(ColumnKinds(categories=("a", "b", "c")))

    columns, typed = infer(rules, a=numbers(3, "n/k"), b=["1.0", "2", None], c=["1/2/2020", "3/4/2020", None])

    assert (columns["a"].null_count(), columns["c"][0]) == (0, "1/2/2020")
    assert columns["b"].to_list() == [1, 2, None]
    assert typed.warnings == []


def test_nothing_is_said_about_columns_that_are_not_read_and_nothing_refused():
    rules = TypeRules(ColumnKinds(ignored=("a", "b", "c")))

    _, typed = infer(rules, a=numbers(20, "-"), b=["1/2/2020"] * 20, c=["1,234"] * 20)

    assert typed.warnings == []


def test_dates_are_said_as_they_were_read_and_as_requests_must_write_them():
    columns, typed = infer(when=["31.12.2020", "1.2.2020"], at=["2020-12-31T08:00:00Z"] * 2, plain=["2020-12-31"] * 2)

    assert (columns["when"].dtype, columns["at"].dtype) == (pl.Date, pl.Datetime("us"))
    assert typed.warnings == [
        "Column 'when' is read as dates, the day first: '31.12.2020' is 2020-12-31, and requests must write it so.",
        "Column 'at' is read as dates: '2020-12-31T08:00:00Z' is 2020-12-31T08:00, and requests must write it so. Time "
        "zones (Z) are left out: the time on the clock counts.",
    ]


def test_odd_dates_are_missing_and_counted_or_said_to_be_too_many():
    days = [f"2020-01-{1 + i % 28:02}" for i in range(100)]

    columns, typed = infer(few=[*days[:98], "unknown", "0000-00-00"], many=[*days[:80], *["soon"] * 20])

    assert (columns["few"].null_count(), columns["many"].dtype) == (2, pl.String)
    assert typed.missing_texts == {"few": ("unknown",)}
    assert typed.warnings == [
        "Column 'few': 2 of 100 values are not dates ('0000-00-00', 'unknown') and count as missing.",
        "Column 'many' is read as categories, because 20 of its 100 values are not dates ('soon'); to count these as "
        "missing, name it in --dates.",
    ]


def test_ambiguous_dates_are_refused_by_column_with_the_options_that_decide():
    texts = ["1/2/2020", "3/4/2020"]

    with pytest.raises(CannotTrain, match=r"Column 'when' contains dates like '1/2/2020'.*--dayfirst or --no-dayfirst"):
        infer(when=texts)

    assert str(infer(TypeRules(dayfirst=True), when=texts)[0]["when"][0]) == "2020-02-01"
    assert str(infer(TypeRules(dayfirst=False), when=texts)[0]["when"][0]) == "2020-01-02"


def test_eight_digits_are_dates_only_if_all_of_them_are():
    columns, typed = infer(day=["20201231", "20200229"], code=["20201231", "20200230"])

    assert (columns["day"].dtype, columns["code"].dtype) == (pl.Date, pl.Int64)
    assert "name it in --numbers or --categories" in typed.warnings[0]


def test_odd_values_of_a_target_of_few_numbers_are_classes_and_of_many_are_missing():
    few = infer(TypeRules(target="y"), y=[*["0", "1", "2"] * 30, "other", "other"])
    many = infer(TypeRules(target="y"), y=numbers(100, "k.A."))

    assert few[0]["y"].dtype == pl.String
    assert many[0]["y"].null_count() == 1
    assert "If the column contains codes, use --kind class" in many[1].warnings[0]
    assert infer(TypeRules(target="y", target_kind="class"), y=numbers(100, "k.A."))[0]["y"].dtype == pl.String


def test_a_target_of_whole_floats_is_one_of_integers():
    assert infer(TypeRules(target="y"), y=["0.0", "1.0", None])[0]["y"].to_list() == [0, 1, None]


def test_text_of_a_typed_file_is_read_as_what_it_is_with_a_sentence():
    columns, typed = infer(from_text=False, a=["1.5", "2"], when=["2020-12-31", "2020-01-01"], word=["x", "y"])

    assert [column.dtype for column in columns.values()] == [pl.Float64, pl.Date, pl.String]
    assert ["read as numbers" in typed.warnings[0], "read as dates" in typed.warnings[1]] == [True, True]


def test_the_decimal_sign_is_a_point_or_a_comma():
    with pytest.raises(CannotTrain, match="--decimal ';': the decimal sign is"):
        infer(TypeRules(decimal=";"), b=["1"])
