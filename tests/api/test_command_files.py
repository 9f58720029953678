"""The commands that train and predict from files: what they come to, and what they refuse."""

import csv
import io
import re
import threading
import tomllib

import numpy as np
import pytest

from fastmlp import MLP, Adam, DomainError, __main__, load
from fastmlp.command import tables, training
from fastmlp.command.predicting import predict
from fastmlp.command.settings import read_settings
from fastmlp.command.tables import Columns, read_columns, read_rows
from fastmlp.command.training import take_raw_features, train
from fastmlp.distributed import run_on_threads
from fastmlp.errors import RankFailedError
from tests import ROOT

pytest.importorskip("safetensors", reason="safetensors is not installed")

SETTINGS = """
[data]
train = "rows.csv"
target = "price"
features = ["x", "a b", "z"]
scale = true
[model]
hidden = [16]
[optimizer]
name = "Adam"
learning_rate = 0.02
[fit]
epochs = 4
threads = 1
[output]
model = "model.fastmlp"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with rows and settings, which is the current one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)) * [1, 10, 100] + [0, 5, 1000]
    y = X[:, 0] + X[:, 1] / 5
    with open("rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "x", "a b", "z", "price"])
        writer.writerows(
            [f"row, {k}", *row, t] for k, (row, t) in enumerate(zip(X, y, strict=True))
        )
    np.savez("rows.npz", X=X, y=y, sample_weight=np.ones(200))
    (tmp_path / "settings.toml").write_text(SETTINGS)
    return tmp_path, X, y


def change(folder, *pairs):
    text = SETTINGS
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    (folder[0] / "settings.toml").write_text(text)


def test_training_and_predicting_are_those_of_python(folder, capsys):
    _, X, y = folder
    assert __main__.main(["train", "settings.toml", "--quiet"]) == 0
    assert "History of 4 epochs" in capsys.readouterr().err
    center, spread = X.mean(axis=0), X.std(axis=0)
    model = MLP([3, 16, 1])
    model.fit((X - center) / spread, y, epochs=4, optimizer=Adam(0.02), threads=1)
    wanted = model.predict((X - center) / spread)
    assert __main__.main(["predict", "model.fastmlp", "rows.csv"]) == 0
    name, *lines = capsys.readouterr().out.splitlines()
    got = np.array(lines, dtype=float)
    assert name == "output"
    # The scales are in the first layer: the same function, up to rounding.
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    assert __main__.main(["predict", "model.fastmlp", "rows.csv", "--out", "out.csv"]) == 0
    assert (folder[0] / "out.csv").read_text().splitlines() == [name, *lines]
    assert __main__.main(["info", "model.fastmlp"]) == 0
    said = capsys.readouterr().out
    assert "columns: x, a b, z" in said and "trained for 4 epochs" in said
    assert "81 parameters" in said


def test_scales_in_the_first_layer_are_exact_in_float64():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)) * [1, 10, 100] + [0, 5, 1000]
    center, spread = X.mean(axis=0), X.std(axis=0)
    model = MLP([3, 8, 2], dtype="float64")
    wanted = model.predict((X - center) / spread)
    take_raw_features(model, center, spread)
    np.testing.assert_allclose(model.predict(X), wanted, rtol=1e-12, atol=1e-12)


def test_files_of_all_kinds_hold_the_same_rows(folder):
    _, X, y = folder
    columns = Columns(("price",), ("x", "a b", "z"))
    rows = read_rows("rows.csv", columns)
    np.testing.assert_array_equal(rows.X.values, X)
    np.testing.assert_array_equal(rows.y, y)
    arrays = read_rows("rows.npz", Columns())
    np.testing.assert_array_equal(arrays.X, X)
    assert arrays.sample_weight.sum() == 200
    weighted = read_rows("rows.csv", Columns(("price",), ("x",), "z"))
    np.testing.assert_array_equal(weighted.sample_weight, X[:, 2])
    several = read_rows("rows.csv", Columns(("price", "z"), ("x", "a b")))
    assert several.y.shape == (200, 2)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pandas.read_csv("rows.csv").to_parquet("rows.parquet")
    again = read_rows("rows.parquet", columns)
    np.testing.assert_array_equal(again.X.values, X)
    assert again.X.columns == rows.X.columns
    with pytest.raises(DomainError, match="in the column 'id', wanted numbers"):
        read_columns("rows.parquet", ["id"])


def test_a_killed_run_goes_on_by_the_same_command(folder):
    change(folder, ("[output]", '[checkpoint]\npath = "fit.fastmlp"\n[output]'))
    _, whole = train("settings.toml")
    bits = load("model.fastmlp").parameters.tobytes()
    (folder[0] / "model.fastmlp").unlink()
    # As if killed after the third epoch.
    (folder[0] / "fit.fastmlp").unlink()
    (folder[0] / "fit.fastmlp.1").rename(folder[0] / "fit.fastmlp")
    _, history = train("settings.toml")
    assert load("model.fastmlp").parameters.tobytes() == bits
    assert history.loss.tobytes() == whole.loss.tobytes()


def test_classes_validation_schedules_and_a_history(folder):
    _, X, y = folder
    for name, rows in (("train", slice(0, 150)), ("held", slice(150, 200))):
        np.savez(f"{name}.npz", X=X[rows], y=np.digitize(y[rows], [-1, 2]))
    change(
        folder,
        ('"rows.csv"', '"train.npz"\nvalidation = "held.npz"'),
        ('target = "price"\nfeatures = ["x", "a b", "z"]\n', ""),
        ("hidden = [16]", 'hidden = [16]\nloss = "cross_entropy"'),
        ("learning_rate = 0.02", '[schedule]\nname = "cosine decay"\ninitial = 0.02\nsteps = 100'),
        ("[fit]", '[early_stopping]\npatience = 3\nmonitor = "validation_accuracy"\n[fit]'),
        ("epochs = 4", 'epochs = 4\nmetrics = ["accuracy"]'),
        ("[output]", '[output]\nhistory = "history.csv"'),
    )
    model, history = train("settings.toml")
    assert model.sizes == (3, 16, 3) and "validation_accuracy" in history.values
    assert len((folder[0] / "history.csv").read_text().splitlines()) == 1 + len(history.loss)
    # Rows of a file without names.
    out = io.StringIO()
    assert predict("model.fastmlp", "held.npz", out) == 50
    assert out.getvalue().startswith("output_0,output_1,output_2\n")


BAD = {
    "a table": (("[fit]", "[fits]"), "settings.toml: got 'fits'.*did you mean 'fit'"),
    "a key": (("epochs = 4", "epoch = 4"), r"\[fit\]: got 'epoch'.*did you mean 'epochs'"),
    "a keyword of the model": (("hidden = [16]", "hiden = [16]"), r"\[model\].*mean 'hidden'"),
    "an optimizer": (('"Adam"', '"adan"'), r"\[optimizer\] name: got 'adan'.*mean 'adam"),
    "its keyword": (("learning_rate =", "learning_rat ="), r"\[optimizer\].*mean 'learning_rate'"),
    "a value": (("epochs = 4", "epochs = 0"), "epochs: got 0"),
    "layers": (("[16]", "16"), r"\[model\] hidden: got 16, wanted a list"),
    "units": (("[16]", '["a"]'), "'a'"),
    "no target": (('target = "price"\n', ""), r"\[data\] target: got none"),
    "another target": (('"price"', '"prize"'), r"target: got 'prize'.*did you mean 'price'"),
    "a feature": (('"a b"', '"b"'), "rows.csv: got 'b', wanted one of id, x, a b, z, price"),
    "text": (('"a b"', '"id"'), "line 2: got 'row, 0' in the column 'id', wanted a number"),
    "no file": (("rows.csv", "row.csv"), "No such file or directory: 'row.csv'"),
    "a kind of file": (("rows.csv", "rows.xlsx"), "got 'rows.xlsx', wanted a file of .csv"),
    "no truth": (("scale = true", "scale = 1"), "scale: got 1, wanted true or false"),
    "no text": (("target = \"price\"", "target = 3"), "target: got 3, wanted text or a list"),
    "no TOML": (("[fit]", "[fit"), "settings.toml: got no TOML: "),
    "no table": (("[data]", "checkpoint = 3\n[data]"), r"got checkpoint = 3, wanted a table"),
    "two rates": (("[fit]", "[schedule]\nname = 'one_cycle'\n[fit]"), "got one and a"),
    "no output": (('model = "model.fastmlp"', ""), r"\[output\] model: got none"),
    "columns of arrays": (("rows.csv", "rows.npz"), "whose arrays X and y have none"),
    "no folder": (('"model.fastmlp"', '"no/model.fastmlp"'), "no"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_one_line_and_status_two(folder, what, capsys):
    pair, words = BAD[what]
    text = SETTINGS.replace(*pair, 1)
    assert text != SETTINGS
    (folder[0] / "settings.toml").write_text(text)
    assert __main__.main(["train", "settings.toml", "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("fastmlp: ")
    assert re.search(words, shown.err) and "Traceback" not in shown.err
    assert shown.err.count("\n") == 1 or what == "no TOML"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: got"),
        ("1,2\n3,4\n", "line 1: got ['1', '2'], wanted the names"),
        ("a,b\n", "got no rows below"),
        ("a,b\n1,2\n3\n", "line 3: got 1 cells, wanted 2"),
        ("a,b\n1,2\n3,\n", "line 3: got '' in the column 'b', wanted a number"),
        ("a,b\n1,2\n3,4,5\n", None),
    ],
    ids=["empty", "no names", "no rows", "short line", "empty cell", "long line"],
)
def test_a_damaged_table_says_where(tmp_path, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text)
    if words is None:
        # Cells beyond the named ones are nobody's.
        assert read_columns(str(path), ["a", "b"]).values.shape == (2, 2)
        return
    with pytest.raises(DomainError, match=re.escape(words)):
        read_columns(str(path), ["a", "b"])


def test_other_delimiters_and_marks_of_an_encoding(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffa;b\n1;2\n".encode())
    assert read_columns(str(path), ["b", "a"], ";").values.tolist() == [[2, 1]]
    assert tables.column_names(str(path), ";") == ("a", "b")


def test_parameters_that_became_infinite_have_status_one(folder, capsys):
    change(folder, ("0.02", "1e30"), ('"Adam"', '"sgd"'))
    assert __main__.main(["train", "settings.toml", "--quiet"]) == 1
    assert capsys.readouterr().err.startswith("fastmlp: ")


def test_a_file_that_is_no_model_is_refused(folder, capsys):
    for words in (["info", "rows.csv"], ["predict", "rows.csv", "rows.csv"], ["info", "none"]):
        assert __main__.main(words) == 2
        assert capsys.readouterr().err.startswith("fastmlp: ")


def test_the_version_is_shown(capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--version"])
    assert ended.value.code == 0 and re.match(r"fastmlp \d", capsys.readouterr().out)


def test_the_settings_of_the_guide_are_read(tmp_path):
    page = (ROOT / "docs" / "guide" / "command.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = tmp_path / "houses.toml"
    path.write_text(text)
    settings = read_settings(str(path))
    assert settings.hidden == [64, 64] and settings.output == "houses.fastmlp"
    assert set(tomllib.loads(text)) <= set(re.findall(r"`\[(\w+)\]`", page))


def ranks_that_fail(size, monkeypatch, prepare=lambda rank: None):
    """Return what each rank of threads raises when it trains."""
    worlds = threading.local()
    monkeypatch.setattr(training, "_world", lambda: worlds.own)

    def run(world):
        worlds.own = world
        try:
            prepare(world.rank)
            train("settings.toml", mpi=True)
        except Exception as error:
            return error
        return None

    return run_on_threads(size, run)


def said(error, monkeypatch, capsys):
    """Return the status of the command for an error, and what it says."""

    def fail(*given):
        raise error

    monkeypatch.setattr(training, "train", fail)
    return __main__.main(["train", "settings.toml", "--quiet"]), capsys.readouterr().err


def test_a_file_that_one_rank_cannot_read_ends_all(folder, monkeypatch, capsys):
    ranks, read = threading.local(), training.read_rows

    def broken(*given):
        if ranks.own == 1:
            raise DomainError("rows.csv, line 3: got 'much' in the column 'x', wanted a number")
        return read(*given)

    monkeypatch.setattr(training, "read_rows", broken)
    errors = ranks_that_fail(2, monkeypatch, lambda rank: setattr(ranks, "own", rank))
    assert [type(each) for each in errors] == [RankFailedError, DomainError]
    assert "rank 1: DomainError: rows.csv, line 3" in str(errors[0])
    wanted = (
        "fastmlp: rows.csv, line 3: got 'much' in the column 'x', wanted a number (on rank 1)\n"
    )
    assert [said(each, monkeypatch, capsys) for each in errors] == [(2, ""), (2, wanted)]
    assert not (folder[0] / "model.fastmlp").exists()


@pytest.mark.parametrize(
    ("size", "old", "new", "message"),
    [
        (2, "rows.csv", "none.csv", "No such file or directory: 'none.csv'"),
        (2, "hidden", "hiden", "hiden"),
        (16, "x", "x", "got 16 ranks, wanted a power of two and at most shards=8"),
        (2, "0.02", "1e30", "not finite"),
    ],
    ids=["file", "settings", "ranks", "numbers"],
)
def test_what_all_ranks_find_is_said_by_one(size, old, new, message, folder, monkeypatch, capsys):
    change(folder, (old, new), ('"Adam"', '"sgd"'))
    heard = [said(each, monkeypatch, capsys) for each in ranks_that_fail(size, monkeypatch)]
    status = 1 if message == "not finite" else 2
    assert [each for each, _ in heard] == [status] * size
    assert message in heard[0][1] and heard[0][1].count("\n") == 1
    assert {line for _, line in heard[1:]} == {""}


def test_fewer_rows_than_ranks_are_refused_by_one(folder, monkeypatch, capsys):
    with open("rows.csv") as file:
        first = file.readlines()[:4]
    (folder[0] / "rows.csv").write_text("".join(first))
    heard = [said(each, monkeypatch, capsys) for each in ranks_that_fail(4, monkeypatch)]
    assert heard == [
        (2, "fastmlp: rows: got 3 for 4 ranks, wanted one for each at least\n"),
        *[(2, "")] * 3,
    ]


def test_a_model_that_the_first_rank_cannot_write_ends_all(folder, monkeypatch):
    change(folder, ('"model.fastmlp"', '"no folder/model.fastmlp"'))
    errors = ranks_that_fail(2, monkeypatch)
    assert isinstance(errors[0], OSError) and isinstance(errors[1], RankFailedError)


def test_ranks_train_the_model_of_one_rank(folder, monkeypatch):
    """Threads play the ranks: each finds its own world."""
    worlds = threading.local()
    monkeypatch.setattr(training, "_world", lambda: worlds.own)

    def run(world):
        worlds.own = world
        return train("settings.toml", mpi=True)[0].parameters.tobytes()

    assert len({*run_on_threads(1, run), *run_on_threads(2, run)}) == 1
