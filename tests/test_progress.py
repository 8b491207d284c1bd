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
