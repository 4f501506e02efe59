"""SIGKILL at random instants: nothing lost, nothing doubled, nothing left lying about."""

import supervisor
from supervised import how_many, outcome_of


def test_a_capture_and_its_accumulation_killed_at_random_end_in_the_same_bits(tmp_path, soak):
    kills, seed = how_many(soak, 10)
    outcome, errors = outcome_of("supervisor.py", tmp_path, kills, seed)
    print(  # noqa: T201  # the line that `make soak` is run for
        f"kills: {outcome['kills']} over {outcome['trials']} stores (seed {seed}), {outcome['kills_with_rows']} with "
        f"rows committed, {outcome['kills_after_capture']} during accumulation; wrong: {outcome['wrong'] or 'nothing'}"
    )
    assert outcome["wrong"] == [], errors
    assert outcome["kills"] == kills
    assert outcome["commits_of_one_run"] > 20
    assert outcome["kills_with_rows"] > 0


def test_the_supervisor_would_notice(tmp_path):
    """Were a file of a resumed store another one, or one too many, its prints would say so."""
    for name in ("a", "b"):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "c" / "0").write_bytes(b"tile")
    assert supervisor.prints(tmp_path / "a") == supervisor.prints(tmp_path / "b")
    (tmp_path / "b" / "c" / ".tmp-litter").write_bytes(b"")
    assert supervisor.prints(tmp_path / "a") != supervisor.prints(tmp_path / "b")


def test_an_accumulation_block_by_block_killed_at_random_ends_in_the_bits_of_the_whole_network(tmp_path, soak):
    kills, seed = how_many(soak, 4)
    outcome, errors = outcome_of("blocks_supervisor.py", tmp_path, kills, seed)
    print(  # noqa: T201  # the line that `make soak` is run for
        f"kills: {outcome['kills']} over {outcome['trials']} stores (seed {seed}), {outcome['kills_with_a_stream']} "
        f"with a stream on disk, {outcome['kills_past_the_first_block']} past the first block; wrong: "
        f"{outcome['wrong'] or 'nothing'}"
    )
    assert outcome["wrong"] == [], errors
    assert outcome["kills"] == kills
    assert outcome["kills_with_a_stream"] > 0


def test_gradients_block_by_block_killed_at_random_end_in_the_bits_of_the_whole_network(tmp_path, soak):
    kills, seed = how_many(soak, 4)
    outcome, errors = outcome_of("blocks_supervisor.py", tmp_path, kills, seed, "gradients")
    print(  # noqa: T201  # the line that `make soak` is run for
        f"kills: {outcome['kills']} over {outcome['trials']} stores with gradients (seed {seed}), "
        f"{outcome['kills_with_a_stream']} with a stream on disk, {outcome['kills_on_the_way_back']} on the way back; "
        f"wrong: {outcome['wrong'] or 'nothing'}"
    )
    assert outcome["wrong"] == [], errors
    assert outcome["kills"] == kills
    assert outcome["kills_on_the_way_back"] > 0


def test_a_compression_block_by_block_killed_at_random_ends_in_the_bits_of_the_whole_network(tmp_path, soak):
    kills, seed = how_many(soak, 3)
    outcome, errors = outcome_of("sequence_supervisor.py", tmp_path, kills, seed)
    print(  # noqa: T201  # the line that `make soak` is run for
        f"kills: {outcome['kills']} over {outcome['trials']} compressions (seed {seed}), "
        f"{outcome['kills_with_a_block_kept']} with a block compressed, {outcome['kills_within_a_pass']} in a pass, "
        f"{outcome['kills_while_written']} while the network was written; "
        f"wrong: {outcome['wrong'] or 'nothing'}"
    )
    assert outcome["wrong"] == [], errors
    assert outcome["kills"] == kills
    assert outcome["kills_with_a_block_kept"] > 0
