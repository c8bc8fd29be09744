"""Variables: where their values are found in a batch, and what is said when they are not."""

from types import SimpleNamespace

import nets
import numpy as np
import pytest
import torch

from lightning_interp.errors import InterpError, LabelError, VariableError
from lightning_interp.variables import KINDS, Concept, Confounder, check_variables

VALUES = [1.0, 0.0, 1.0]
T = torch.tensor(VALUES)


@pytest.mark.parametrize(
    ("label", "batch"),
    [
        (None, {"grass": T}),
        ("grass", {"grass": T}),
        ("place", {"place": T.bool()}),
        (2, (None, None, T)),
        (-1, [None, T.int()]),
        ("meta.place", {"meta": {"place": T}}),
        ("meta.place", {"meta": SimpleNamespace(place=T)}),
        ("meta.place", SimpleNamespace(meta={"place": T})),
        ("meta.place", {"meta.place": T}),
        ("1.grass", (None, {"grass": T})),
        ("-1.grass", (None, {"grass": T})),
        ("nets:grass_of", {"grass": T}),
        (lambda batch: batch["a"] - batch["b"], {"a": T + 4, "b": torch.full((3,), 4.0)}),
        ("grass", {"grass": VALUES}),
        ("grass", {"grass": np.array(VALUES, dtype=np.float32)}),
        ("grass", {"grass": T[:, None]}),
    ],
)
def test_a_label_is_found_wherever_it_sits(label, batch):
    values, names = Confounder("grass", label).read(batch)
    assert values.dtype == torch.float64
    assert values.tolist() == VALUES
    assert names == {}


def test_minus_zero_and_zero_are_one_level():
    values, _ = Concept("v").read({"v": torch.tensor([-0.0, 0.0])})
    assert values.view(torch.int64).unique().tolist() == [0]


def test_reading_a_label_never_aliases_the_batch():
    held = torch.zeros(3, dtype=torch.float64)
    values, _ = Concept("v").read({"v": held})
    held += 1
    assert values.tolist() == [0, 0, 0]


def test_string_labels_get_codes_that_depend_on_the_string_alone():
    v = Concept("place")
    one, names = v.read({"place": ["desert", "meadow", "desert"]})
    two, more = v.read({"place": ("meadow",)})
    assert one[0] == one[2] != one[1] == two[0]
    assert names == {float(one[0]): "desert", float(one[1]): "meadow"}
    assert more == {float(two[0]): "meadow"}


def test_string_codes_are_exact_in_float64():
    texts = [f"level {i}" for i in range(5000)]
    codes, names = Concept("v").read({"v": texts})
    assert len(names) == len(set(codes.tolist())) == 5000
    assert (codes.long().double() == codes).all()
    assert codes.abs().max() < 2**53


@pytest.mark.parametrize("shape", [(), (3, 2), (1, 3)])
def test_a_label_that_is_not_one_value_per_sample_is_an_error_with_its_shape(shape):
    shown = str(list(shape)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(LabelError, match=f"`label of 'v'='v'` expects one value per sample, got shape {shown}"):
        Concept("v").read({"v": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("label", "batch", "said"),
    [
        (
            "gras",
            {"image": T, "grass": T},
            r"`label of 'v'='gras'` is not in the batch, a dict: no 'gras'. Did you mean 'grass'\?",
        ),
        ("zzz", {"image": T, "grass": T}, r"no 'zzz'. Known: 'image', 'grass'."),
        ("meta.plce", {"meta": {"place": T}}, r"`label of 'v'='meta.plce'` .* no 'plce'. Did you mean 'place'\?"),
        ("metta.place", {"meta": {"place": T}}, r"no 'metta'. Did you mean 'meta'\?"),
        ("gras", SimpleNamespace(grass=T), r"a SimpleNamespace: no 'gras'. Did you mean 'grass'\?"),
        ("grass", (T, T), r"`label of 'v'='grass'` is not in the batch, a tuple: no 'grass'."),
        (2, (T, T), r"`label of 'v'=2` is not in the batch, a tuple of 2 items."),
        (-3, [T, T], r"`label of 'v'=-3` is not in the batch, a list of 2 items."),
        (0, {"grass": T}, r"a dict: no '0'. Known: 'grass'."),
    ],
)
def test_a_label_that_is_not_in_the_batch_names_what_is(label, batch, said):
    with pytest.raises(LabelError, match=said):
        Concept("v", label).read(batch)


@pytest.mark.parametrize("found", [None, object(), ["a", 1], [[1], [1, 2]]])
def test_a_label_that_is_no_numbers_is_an_error(found):
    with pytest.raises(LabelError, match="`label of 'v'` expects numbers, got"):
        Concept("v").read({"v": found})


@pytest.mark.parametrize("label", [True, 1.5, ["a"], {"a": 1}])
def test_a_label_of_no_known_form_is_an_error(label):
    with pytest.raises(LabelError, match=r"`label of 'v'` expects a key, an index, 'a.dotted.path' or a function, got"):
        Concept("v", label)


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_name_is_a_non_empty_string(name):
    with pytest.raises(VariableError, match="`name` expects a non-empty string, got"):
        Concept(name)


def test_a_name_holds_no_slash():
    with pytest.raises(VariableError, match=r"`name='a/b'` holds a '/', which would split the logged key"):
        Concept("a/b")


@pytest.mark.parametrize("name", ["unexplained", "interactions"])
def test_a_name_that_the_shares_use_themselves_is_refused(name):
    # contribution/unexplained is logged beside the variables' own shares: one would hide the other
    with pytest.raises(VariableError, match=name):
        Concept(name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_kept(kind):
    assert Concept("v", kind=kind).kind == kind


@pytest.mark.parametrize(
    ("kind", "near"), [("catgorical", "categorical"), ("Binary", "binary"), ("continous", "continuous"), ("aut", "auto")]
)
def test_an_unknown_kind_names_the_nearest(kind, near):
    with pytest.raises(VariableError, match=rf"variable 'v': `kind='{kind}'` is none of .*Did you mean '{near}'\?"):
        Concept("v", kind=kind)


def test_a_concept_should_matter_and_a_confounder_should_not():
    assert Concept("v").should_matter
    assert not Confounder("v").should_matter
    assert repr(Confounder("v", 2, "binary")) == "Confounder('v', label=2, kind='binary')"


# --- import paths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module:f", r"`intervention of 'v'='no_such_module:f'`: cannot import module 'no_such_module'"),
        ("nets:swap_gras", r"module 'nets' has no 'swap_gras'. Did you mean 'swap_grass'"),
        ("nets:", r"module 'nets' has no ''"),
        ("nets:NOT_A_FUNCTION", r"expects a function, got int"),
    ],
)
def test_an_intervention_that_cannot_be_imported_says_why(path, said):
    with pytest.raises(InterpError, match=said):
        Confounder("v", intervention=path)
    with pytest.raises(InterpError, match=said.replace("intervention of", "label of")):
        Confounder("v", label=path)


@pytest.mark.parametrize("path", [":f", ".nets:f", "nets.:f"])
def test_a_malformed_import_path_is_an_error_of_this_library(path):
    with pytest.raises(InterpError, match="cannot import module"):
        Confounder("v", intervention=path)


def test_an_intervention_is_a_function():
    with pytest.raises(VariableError, match="variable 'v': `intervention` expects a function, got 3"):
        Confounder("v", intervention=3)


@pytest.mark.parametrize("given", ["nets:swap_grass", nets.swap_grass])
def test_an_intervention_is_applied_to_the_batch(given):
    batch = nets.probe(2)
    changed = Confounder("grass", intervention=given).intervened(batch)
    assert (changed["grass"] == 1 - batch["grass"]).all()
    assert (changed["x"][:, 2] == 1 - batch["x"][:, 2]).all()


def test_asking_for_an_intervention_that_was_not_given_names_the_variable():
    with pytest.raises(VariableError, match="variable 'grass' has no `intervention`"):
        Confounder("grass").intervened({})


# --- several variables ------------------------------------------------------------------------------------------------


def test_two_variables_of_one_name_are_an_error():
    with pytest.raises(VariableError, match="`variables` has two variables named 'grass'"):
        check_variables([Concept("grass"), Concept("moo"), Confounder("grass", "other")])


def test_no_variable_is_an_error():
    with pytest.raises(VariableError, match="`variables` expects at least one Concept or Confounder, got none"):
        check_variables([])


@pytest.mark.parametrize("wrong", ["grass", 3, Concept])
def test_what_is_no_variable_is_an_error(wrong):
    with pytest.raises(VariableError, match="`variables` expects Concept or Confounder objects, got"):
        check_variables([Concept("moo"), wrong])


def test_one_variable_alone_needs_no_list():
    v = Concept("moo")
    assert check_variables(v) == (v,)
