"""The table at the end of a training."""

from dataclasses import replace

import pytest
from test_events import full

from lightning_interp.events import Effect, Event, Share
from lightning_interp.summaries.table import summary_table


def event(step, grass):
    return Event(
        step,
        0,
        120,
        "balanced",
        "val",
        "binary",
        contribution={"digit": Share(0.2, 0.19), "grass": Share(grass, grass), "unexplained": Share(0.8 - grass)},
        effect={"digit": Effect(1.0, 0.5, 1.5), "grass": Effect(-0.001, -0.1, 0.1)},
        magnitude={"digit": 1.0, "grass": -0.001},
        confounders=("grass",),
    )


def test_the_table_says_where_it_began_and_where_it_ended():
    assert summary_table([event(9, 0.7), event(18, 0.5), event(27, 0.1)], "mine").splitlines() == [
        "What the model uses (mine): 3 events, steps 9 to 27, n = 120, balanced weights",
        "             effect  95 % interval   share  debiased  share: first -> last",
        "digit          1.00   [0.50, 1.50]  20.0 %    19.0 %      20.0 % -> 20.0 %",
        "grass *        0.00  [-0.10, 0.10]  10.0 %    10.0 %      70.0 % -> 10.0 %",
        "unexplained                         70.0 %                10.0 % -> 70.0 %",
        "* a confounder",
    ]


def test_one_event_has_no_way_from_first_to_last():
    assert "->" not in summary_table([event(9, 0.7)]).splitlines()[2]
    assert summary_table([event(9, 0.7)]).startswith("What the model uses: 1 event, step 9, n = 120")


def test_what_is_withheld_is_said():
    text = summary_table([full(), replace(full(), step=400)])
    (grass,) = (line for line in text.splitlines() if line.startswith("grass"))
    assert grass.split()[1:] == ["withheld", "withheld", "withheld", "->", "withheld"]
    assert "worst group 0.500 (moo=1)" in text


@pytest.mark.parametrize("names", [("digit",), ("a variable with a long name", "b", "c")])
def test_columns_stand_below_their_heads(names):
    e = replace(event(9, 0.5), effect=dict.fromkeys(names, Effect(-123.4, -200.0, 5.0)), magnitude=dict.fromkeys(names, -123.4))
    lines = summary_table([e]).splitlines()
    end = lines[1].index("effect") + len("effect")
    assert all(line[:end].endswith("-123.40") for line in lines[2 : 2 + len(names)])
