"""What a fit leaves on record: whole epochs, also after an interrupt; its plot and its file."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest

from fastmlp import MLP, Adam, EarlyStopping, Ensemble, History, UnknownNameError
from fastmlp.errors import MissingPackageError

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


def test_a_history_without_epochs_says_so():
    history = History("cpu.fused", "cpu", "r2", 70)
    assert history.line() == "no epochs" and repr(history) == "<History of 0 epochs on cpu.fused>"


def test_a_plot_without_epochs_is_empty():
    pytest.importorskip("matplotlib")
    assert not History("cpu.fused", "cpu", "r2", 70).plot().axes[0].lines


def watched(members=None, **more):
    """Return the history of a fit that stops early, with two validation sets and a metric."""
    sets = {"near": (X[:20], Y[:20]), "far": (X[20:] + 1, Y[20:])}
    model = MLP([5, 7, 2]) if members is None else Ensemble([5, 7, 2], members)
    rule = EarlyStopping(2, 0.01, "far_mae")
    asked = {"epochs": 30, "batch_size": 10, "optimizer": Adam(0.05), "l2": 0.1, **more}
    return model.fit(X, Y, validation_data=sets, metrics="mae", early_stopping=rule, **asked)


@pytest.mark.parametrize("members", [None, 3])
def test_a_history_is_a_frame_and_a_csv_of_the_same_numbers(members, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    history = watched(members)
    frame = history.to_frame()
    names = ["epoch"] if members is None else ["epoch", "member"]
    assert list(frame.index.names) == names and set(frame.columns) == set(history.values)
    for name in frame.columns:
        if members is None:
            np.testing.assert_array_equal(frame[name].to_numpy(), history.values[name])
            assert frame.index.tolist() == list(range(1, len(history) + 1))
            continue
        for member in range(members):
            own = history.member(member).values[name]
            np.testing.assert_array_equal(frame[name].xs(member, level="member"), own)
    history.to_csv(tmp_path / "history.csv")
    read = pandas.read_csv(tmp_path / "history.csv", index_col=names)
    pandas.testing.assert_frame_equal(read, frame, rtol=1e-14)
    if members is not None:
        # Some network stopped before another one: it has fewer lines.
        assert len(frame) < members * len(history)


def test_a_frame_of_no_epochs_and_of_one_without_its_validation():
    pytest.importorskip("pandas", reason="pandas is not installed")
    for members in (None, 2):
        empty = History("cpu.fused", "cpu", "r2", 70, members).to_frame()
        assert len(empty) == 0 and list(empty.columns) == ["loss", "seconds", "learning_rate"]
    history, numbers, validation = records()[0]
    for more in (True, False):
        history.record(*numbers)
        if more:
            history.record_validation(found_of(*validation))
    assert history.to_frame()["validation_r2"].isna().tolist() == [False, True]


def test_without_pandas_a_frame_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match=r"to_frame: got no pandas.*fastmlp\[pandas\]"):
        History("cpu.fused", "cpu", "r2", 70).to_frame()


@pytest.mark.parametrize("members", [None, 3])
def test_a_plot_has_every_set_and_marks_the_best_epoch(members):
    pytest.importorskip("matplotlib")
    history = watched(members)
    networks = members or 1
    for metric, labels in (("loss", ["training", "near", "far"]), ("mae", ["near", "far"])):
        axes = history.plot(metric=metric).axes[0]
        texts = [each.get_text() for each in axes.get_legend().get_texts()]
        assert texts == [*labels, "best epoch"] and axes.get_ylabel() == metric
        lines = axes.lines[:-1]
        assert len(lines) == networks * len(labels)
        best = np.atleast_1d(history.best_epoch).tolist() * len(labels)
        assert [line.get_markevery() for line in lines] == [[each - 1] for each in best]
    drawn = history.plot(metric="mae").axes[0].lines[networks].get_ydata()
    np.testing.assert_array_equal(drawn, history.values["far_mae"].reshape(-1, networks)[:, 0])
    with pytest.raises(UnknownNameError, match="metric: got 'rmse', wanted one of loss, r2, mae"):
        history.plot(metric="rmse")


@pytest.mark.parametrize(
    ("losses", "log", "scale"),
    [
        ([1.0, 0.5, 0.02], None, "linear"),
        ([1.0, 0.5, 0.002], None, "log"),
        ([1.0, -0.5, 0.002], None, "linear"),
        ([1.0, np.inf, 0.5], None, "linear"),
        ([1.0, 0.5, 0.002], False, "linear"),
        ([1.0, 0.5, 0.4], True, "log"),
    ],
)
def test_the_scale_is_logarithmic_where_that_helps(losses, log, scale):
    pytest.importorskip("matplotlib")
    history = History("cpu.fused", "cpu", "r2", 70)
    for loss in losses:
        history.record(loss, 1.0)
    assert history.plot(log=log).axes[0].get_yscale() == scale


def test_a_notebook_shows_the_last_epochs_and_the_best_one():
    history = History("cpu.fused", "cpu", "r2", 70)
    for epoch in range(1, 25):
        history.record(100.0 + epoch, 1.0)
        history.record_validation({("a<b", "loss"): 0.25, ("a<b", "r2"): 0.5})
    history.best_epoch = 3
    page = history._repr_html_()
    assert "a&lt;b_loss" in page and "a<b" not in page
    shown = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td>", page)
    assert shown == [("3 (best)", "103"), *((str(n), f"{100 + n}") for n in range(15, 25))]
    several = watched(3)._repr_html_()
    assert "History of" in several and several.count("<tr>") <= 11
    assert "<table>" in History("cpu.fused", "cpu", "r2", 70)._repr_html_()
