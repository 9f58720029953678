"""What a fit leaves on record: whole epochs, also after an interrupt; its plot and its file."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from fastmlp import MLP, Adam, Ensemble, History

rng = np.random.default_rng(0)
X = rng.normal(size=(70, 5))
Y = rng.normal(size=(70, 2))
COLUMNS = ("loss", "penalty", "learning_rate", "seconds", "validation_loss", "validation_score")


def test_history_holds_an_entry_for_each_epoch(tmp_path):
    model = MLP([5, 7, 2])
    validation = (X[:20], Y[:20])
    history = model.fit(X, Y, epochs=3, optimizer=Adam(0.01), validation_data=validation)
    assert model.history is history and len(history) == 3
    for name in ("loss", "validation_loss", "validation_score", "seconds"):
        assert getattr(history, name).shape == (3,)
    last = model.evaluate(*validation)
    assert history.validation_loss[-1] == last.loss
    assert history.validation_score[-1] == last.score
    assert history.device == "cpu" and history.kernel.startswith("cpu.")
    assert history.rows_per_second == pytest.approx(210 / history.seconds.sum())
    history.to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["1", "2", "3"]
    assert [float(line["loss"]) for line in lines] == history.loss.tolist()
    assert [float(line["validation_r2"]) for line in lines] == history.validation_score.tolist()
    assert "3 epochs on cpu." in repr(history)


def test_history_can_be_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    history = MLP([5, 2]).fit(X, Y, epochs=2, validation_data=(X, Y))
    figure = history.plot(tmp_path / "history.png")
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 2]
    assert (tmp_path / "history.png").stat().st_size > 1000


def found_of(loss, score):
    return {("validation", "loss"): loss, ("validation", "r2"): score}


def records():
    """Return an empty record of either kind, and the numbers of an epoch and its validation."""
    one, three = History("cpu.fused", "cpu", "r2", 70), np.array([1.0, 2.0, 3.0])
    several = History("cpu.fused", "cpu", "r2", 70, 3)
    return (one, (0.5, 1.0, 0.0, 0.1), (0.4, 0.9)), (
        several,
        (three, 1.0, three, three),
        (three, three),
    )


def interrupted_at(line, work):
    """Run `work` with a KeyboardInterrupt before a line of it; return whether it has that many."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if event == "line" and frame.f_code.co_filename.endswith("history.py"):
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("kind", [0, 1], ids=["network", "ensemble"])
def test_an_interrupt_anywhere_leaves_columns_of_one_length(kind):
    line, goes_on = 1, True
    while goes_on:
        history, numbers, validation = records()[kind]
        history.record(*numbers)
        history.record_validation(found_of(*validation))

        def another(history=history, numbers=numbers, validation=validation):
            history.record(*numbers)
            history.record_validation(found_of(*validation))

        goes_on = interrupted_at(line, another)
        lengths = {len(getattr(history, name)) for name in COLUMNS}
        assert lengths == {len(history)}, (line, lengths)
        line += 1
    assert line >= 3 and len(history) == 2


@pytest.mark.parametrize("kind", [0, 1], ids=["network", "ensemble"])
def test_an_epoch_without_its_validation_has_none_of_an_earlier_one(kind, tmp_path):
    history, numbers, validation = records()[kind]
    history.record(*numbers)
    history.record_validation(found_of(*validation))
    history.record(*numbers)
    assert (
        np.isnan(history.validation_loss[1]).all() and np.isnan(history.validation_score[1]).all()
    )
    assert not np.isnan(history.validation_loss[0]).any()
    assert "validation" in history.line(0) and "validation" not in history.line(1)
    single = history if kind == 0 else history.member(2)
    assert single.last()["validation_loss"] is None and len(single.validation_loss) == 2
    single.to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["validation_r2"] != "" for line in lines] == [True, False]
    assert len(history.plot().axes[0].lines) == (2 if kind == 0 else 6)


def test_an_ensemble_plots_a_line_for_each_network_and_a_word_for_each_kind():
    pytest.importorskip("matplotlib")
    history = Ensemble([5, 2], members=3).fit(X, Y, epochs=2, validation_data=(X, Y))
    axes = history.plot().axes[0]
    assert len(axes.lines) == 6
    assert [each.get_text() for each in axes.get_legend().get_texts()] == ["training", "validation"]


def test_a_plot_shows_itself_in_a_notebook_that_has_not_imported_pyplot(
    child_python, child_environment
):
    pytest.importorskip("matplotlib")
    code = (
        "import pickle, sys, fastmlp\n"
        "history = fastmlp.History('cpu.fused', 'cpu', 'r2', 70)\n"
        "history.record(0.5, 1.0); history.record(0.4, 1.0)\n"
        "figure = history.plot()\n"
        "assert figure._repr_png_()[:8] == b'\\x89PNG\\r\\n\\x1a\\n'\n"
        "assert len(pickle.loads(pickle.dumps(figure)).axes) == 1\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [child_python, "-c", code], capture_output=True, text=True, env=child_environment
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_plot_without_epochs_is_empty():
    pytest.importorskip("matplotlib")
    assert not History("cpu.fused", "cpu", "r2", 70).plot().axes[0].lines
