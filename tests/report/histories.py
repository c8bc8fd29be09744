"""Small histories with everything that a figure may meet: withheld values, several runs, names that are HTML."""

from lightning_interp.events import Effect, Event, Groups, Score, Sensitivity, Share
from lightning_interp.results import Entanglement, Mediation

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil=1'>"
NAMES = (EVIL, "a\"b'c & <b>d</b>", "Kuh ☃ %{x} $\\alpha$", "2")
REASON = "'grass' is constant <here>"


def event(step, grass=0.6, names=("digit", "grass"), withheld=False, truth=True, layers=("enc.0", "enc.1")):
    """Two variables; the second a confounder that makes `grass` of the variance; `withheld`: its numbers are not to be had."""
    digit, confounder = names
    share = Share(None, note=REASON) if withheld else Share(grass, grass - 0.01, grass - 0.1, grass + 0.1)
    effect = Effect(None, note=REASON) if withheld else Effect(10 * grass, 10 * grass - 1, 10 * grass + 2, 0.5, 40.0, 0.7)
    score = Score(None, note=REASON) if withheld else Score(0.9, 0.8, 0.95, 0.99, 0.1)
    return Event(
        step=step,
        epoch=step // 10,
        n=120,
        weights="balanced",
        mode="val",
        task="binary",
        intercept=-0.25,
        contribution={digit: Share(0.1, 0.1, 0.05, 0.2), confounder: share, "unexplained": Share(0.9 - grass)},
        effect={digit: Effect(2.0, 1.5, 2.5, 0.25, 80.0, 0.4), confounder: effect},
        magnitude={digit: 2.0, **({} if withheld else {confounder: 10 * grass})},
        decodability={layer: {digit: Score(0.2 + 0.1 * i, 0.1), confounder: score} for i, layer in enumerate(layers)},
        sensitivity={layer: {digit: {"": Sensitivity(-1.5, 4.0, 0.001, 1.0)}} for layer in layers},
        mediation={layer: {n: Mediation({digit: 0.25, confounder: 0.75}) for n in names} for layer in layers},
        entanglement={layer: Entanglement(0.3, {digit: {confounder: 0.3}}, {digit: {confounder: 0.05}}) for layer in layers},
        intervention={confounder: Effect(10 * grass + 0.5, 10 * grass, 10 * grass + 1)} if truth else {},
        groups=Groups(
            {f"{confounder}=0": 0.9, f"{confounder}=1": 0.5 + step / 1000},
            {f"{confounder}=0": 60, f"{confounder}=1": 60}, f"{confounder}=1", 0.5 + step / 1000, 0.4,
        ),
        confounders=(confounder,),
        notes=(f"a note on {confounder}",),
    )  # fmt: skip


def history(*shares, **more):
    """Events at steps 10, 20, …; a share of None is withheld."""
    return [event(10 * (i + 1), 0.6 if s is None else s, withheld=s is None, **more) for i, s in enumerate(shares)]


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel


def discovered(step=10, layer="enc.0", name="feature 1"):
    """What DiscoverFeatures logs at an event."""
    samples = [
        {"kind": "image", "png": PNG, "count": 9},
        {"kind": "text", "texts": [EVIL]},
        {"kind": "rows", "columns": [EVIL], "rows": [[1.5]]},
    ]
    numbers = {
        "causal": None,
        "stability": 0.9,
        "flip": None,
        "early": 0.2,
        "target": 0.4,
        "groups": {"grass=1": 1.0},
        "clarity": 0.8,
        "prevalence": 0.5,
    }
    found = [
        {
            "name": f"{name}{i}",
            "contribution": 0.1 / (i + 1),
            "suspicion": 0.9 - i / 10,
            **numbers,
            "promoted": "stripes" if i == 1 else None,
            "strongest": samples[i],
            "weakest": samples[i],
        }
        for i in range(3)
    ]
    return {"version": 1, "step": step, "epoch": 0, "layer": layer, "unexplained": 0.3, "unnamed": 0.1, "features": found}
