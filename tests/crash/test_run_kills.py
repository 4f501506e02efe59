"""SIGKILL at random instants of whole runs, settings changed in between, two commands at once: nothing is stale."""

from supervised import how_many, outcome_of


def test_runs_killed_at_random_end_in_the_same_files(tmp_path, soak):
    kills, seed = how_many(soak, 5)
    outcome, errors = outcome_of("run_supervisor.py", tmp_path, kills, seed)
    print(  # noqa: T201  # the line that `make soak` is run for
        f"kills: {outcome['kills']} over {outcome['trials']} runs (seed {seed}), {outcome['commands']} commands, "
        f"{outcome['refused']} refused beside another; wrong: {outcome['wrong'] or 'nothing'}"
    )
    assert outcome["wrong"] == [], errors
    assert outcome["kills"] >= kills
    assert outcome["commands"] > outcome["kills"]
