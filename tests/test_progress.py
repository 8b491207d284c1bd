"""Progress where nobody watches a bar."""

from conftest import slow_on_jax

from ddim_keras.support import progress

pytestmark = slow_on_jax


def test_a_file_gets_a_line_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.progress(1000, "steps")
    for step in range(1, 1001):
        now[0] += 0.125
        lines.update(step, [("loss", 0.51234)])
    assert capsys.readouterr().out.splitlines() == [
        "240 of 1000 steps, about 2 min left, loss 0.5123",
        "480 of 1000 steps, about 65 s left, loss 0.5123",
        "720 of 1000 steps, about 35 s left, loss 0.5123",
        "960 of 1000 steps, about 5 s left, loss 0.5123",
        "1000 of 1000 steps, loss 0.5123",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    import keras

    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(progress.progress(10, "images"), keras.utils.Progbar)


def resumed(shown: progress.Progress, now: list[float]):
    """Shows what is left of a training that is resumed at step 900 and has made 100 more."""
    for step in range(901, 1001):
        now[0] += 2.0
        shown.update(step)


def test_what_was_done_before_a_training_was_resumed_took_none_of_its_time(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    resumed(progress.progress(1900, "steps"), now)
    assert capsys.readouterr().out.splitlines()[-1] == "990 of 1900 steps, about 30 min left"


def test_nor_does_it_in_the_bar(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    resumed(progress.progress(1900, "steps"), now)
    assert "30:00" in capsys.readouterr().out.split("1000/1900")[-1]
