"""Results to make tables and pages from."""

from fl_app.config import Job
from fl_app.result import (
    Baseline,
    Final,
    Generation,
    KeptModel,
    Personal,
    PersonalSite,
    Restart,
    Result,
    Round,
    SearchResult,
    SearchSite,
    Site,
    SiteRound,
    SiteScores,
)


def a_result(sites=2, rounds=3, done=2):
    names = [f"site-{number}" for number in range(1, sites + 1)]
    facts = {"device": "cpu", "precision": "bf16", "versions": {}, "preparation_seconds": 1.0, "data_warnings": 0}
    counts = {"training_cases": 3, "validation_cases": 1, "test_cases": 1}
    return Result(
        name="small",
        seed=0,
        rounds_asked=rounds,
        started="2026-01-01T00:00:00+00:00",
        versions={},
        config=Job().model_dump(mode="json"),
        sites={name: Site(**facts, **counts) for name in names},
        rounds=[
            Round(
                number=number,
                seconds=10.0,
                dice=0.5 + number / 10,
                sites={
                    name: SiteRound(loss=1 / number, steps=2, dice=0.5 + place / 100)
                    for place, name in enumerate(names)
                },
            )
            for number in range(1, done + 1)
        ],
    )


def a_finished_result():
    """Two sites, tested and compared with local and centralised training."""
    result = a_result()
    result.status = "finished"

    def scores(*values):
        return {
            f"site-{place}": SiteScores(cases=place, dice=value, dice_std=0.01, surface_dice=0.7)
            for place, value in enumerate(values, start=1)
        }

    result.final = Final(
        round=2,
        best_metric="val_dice",
        best_value=0.7,
        mean_dice=0.81,
        mean_dice_over_sites=0.8,
        mean_surface_dice=0.7,
        sites=scores(0.75, 0.85),
    )
    for name, values in (("local-site-1", (0.7, 0.5)), ("local-site-2", (0.4, 0.8)), ("centralised", (0.76, 0.86))):
        result.baselines[name] = Baseline(
            trained_on=["site-1"], steps=90, seconds=1.0, sites=scores(*values), mean_dice=0.5
        )
    return result


def a_searched_result():
    """The same after an architecture search; each site keeps a model of its own."""
    result = a_finished_result()

    def kept(dice):
        scores = SiteScores(cases=2, dice=dice, dice_std=0.02, surface_dice=0.7)
        return KeptModel(validation_dice=dice, scores=scores, parameters=400_000, memory_bytes=2_500_000_000, steps=120)

    result.personal = Personal(
        sites={
            "site-1": PersonalSite(
                chosen="searched tuned", models={"federated": kept(0.75), "searched tuned": kept(0.79)}
            ),
            "site-2": PersonalSite(chosen="federated", models={"federated": kept(0.85), "searched tuned": kept(0.81)}),
        },
        mean_dice=0.82,
        worst_dice=0.79,
        left_out={"site-3": "it has gone"},
    )
    result.search = SearchResult(
        space="small",
        supernet_parameters=9_000_000,
        supernet_rounds=[Round(number=1, seconds=5, remarks={"site-2": "its update was clipped"})],
        generations=[Generation(number=1, scored=24, best_loss=0.4, seconds=3)],
        sites={
            "site-1": SearchSite(budget_bytes=2 * 10**9, main_bytes=3 * 10**9, parameters=410_000, own_values=20_000),
            "site-2": SearchSite(budget_bytes=8 * 10**9, main_bytes=3 * 10**9, parameters=810_000),
        },
        rounds=[Round(number=1, seconds=5, dice=0.6, sites={"site-1": SiteRound(dice=0.61)})],
        seconds=90,
    )
    result.restarts = [Restart(after_round=1, lost_state=["site-2"])]
    return result
