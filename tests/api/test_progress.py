"""What a person sees of a fit and of compiling, in a terminal and a notebook; programs see none."""

import contextlib
import io
import logging
import os
import re
import select
import struct
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, progress
from fastmlp.history import History
from fastmlp.progress import Report
from fastmlp_kernels import announcing

fcntl = pytest.importorskip("fcntl", reason="no pseudo-terminals here")
pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
termios = pytest.importorskip("termios", reason="no pseudo-terminals here")

rng = np.random.default_rng(0)
X = rng.normal(size=(70, 5))
Y = rng.normal(size=(70, 2))


class Terminal(io.StringIO):
    """A terminal in memory."""

    def isatty(self):
        return True


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def replace_standard_error(monkeypatch, stream):
    # As the module sees it: pytest puts its own stream in place between a fixture and its test.
    seen = types.SimpleNamespace(stderr=stream, modules=sys.modules)
    monkeypatch.setattr(progress, "sys", seen)
    return stream


@pytest.fixture
def terminal(monkeypatch):
    return replace_standard_error(monkeypatch, Terminal())


@pytest.fixture
def notebook(monkeypatch):
    """Return standard error as it is in a notebook: Jupyter's, and not a terminal."""
    module = types.ModuleType("ipykernel.iostream")
    module.OutStream = type("OutStream", (io.StringIO,), {})
    monkeypatch.setitem(sys.modules, "ipykernel.iostream", module)
    return replace_standard_error(monkeypatch, module.OutStream())


@pytest.fixture
def captured_error(monkeypatch):
    return replace_standard_error(monkeypatch, io.StringIO())


def screen(text, columns):
    """Return what a terminal of a width shows in the end: one string a line."""
    lines, column = [[]], 0
    for character in text.replace("\r\n", "\n"):
        if character == "\n":
            lines.append([])
            column = 0
        elif character == "\r":
            column = 0
        else:
            assert character.isprintable(), repr(character)
            if column == columns:
                lines.append([])
                column = 0
            line = lines[-1]
            line.extend(" " * (column + 1 - len(line)))
            line[column] = character
            column += 1
    return ["".join(line).rstrip() for line in lines]


def drawings(text):
    """Return each state of a line that was written again and again."""
    return [each.rstrip() for each in re.split(r"[\r\n]+", text) if each.strip()]


def run_in_terminal(code, environment, columns=80):
    """Run Python with a terminal as its standard error; return what came out there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # COLUMNS is a shell's own, of another terminal.
    environment = {name: value for name, value in environment.items() if name != "COLUMNS"}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        text=True,
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 300
    with contextlib.suppress(OSError):
        # An error is the end: nobody holds the other side any more.
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 1.0)[0]:
                part = os.read(ours, 4096)
                if not part:
                    break
                seen += part
    os.close(ours)
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 0, seen.decode()
    return seen.decode(), printed


FIT = """
import sys, time
import numpy as np
import fastmlp, fastmlp.progress
sys.modules["tqdm"] = None
X, Y = np.ones((70, 5)), np.ones((70, 2))
# Whatever has to be compiled is compiled here.
fastmlp.MLP([5, 2]).fit(X, Y, epochs=1, validation_data=(X, Y), progress=False)
fastmlp.progress.FIT_SECONDS = fastmlp.progress.SOON_SECONDS = 0.2
def fit(pause=0.05, epochs=20, **more):
    wait = lambda event: time.sleep(pause)
    model = fastmlp.MLP([5, 2])
    model.fit(X, Y, epochs=epochs, validation_data=(X, Y), callbacks=[wait], **more)
"""


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_a_long_fit_in_a_terminal_has_a_line_that_fits_it(columns, child_environment):
    seen, printed = run_in_terminal(FIT + "fit()", child_environment, columns)
    assert printed == ""
    shown = drawings(seen)
    assert 3 < len(shown) < 30
    assert all(each.startswith("epoch ") and len(each) < columns for each in shown)
    # One line, and it stays; the cursor is below it.
    assert len(screen(seen, columns)) == 2 and screen(seen, columns)[1] == ""
    assert screen(seen, columns)[0].startswith("epoch 20/20")
    middle = shown[len(shown) // 2]
    assert (re.search(r"loss \S+, .*0:0\d left$", middle) is not None) == (columns > 20)
    assert (re.search("validation loss .*, 0:0.,", middle) is not None) == (columns > 60)
    assert re.search(r"\[#+\.+\]", middle) if columns > 60 else "[" not in middle
    assert ("validation r2" in middle) == (columns == 200)


def test_a_short_fit_in_a_terminal_shows_nothing(child_environment):
    seen, _ = run_in_terminal(FIT + "fit(0.0); fit(0.05, 3)", child_environment)
    assert seen == ""


def test_what_is_not_wanted_is_never_shown(child_environment):
    seen, _ = run_in_terminal(FIT + "fit(progress=False)", child_environment)
    assert seen == ""


def test_lines_of_verbose_do_not_break_the_bar(child_environment):
    code = FIT + "fastmlp.progress.LINE_SECONDS = 0.2; fit(verbose=1)"
    seen, _ = run_in_terminal(code, child_environment)
    *lines, bar, last = screen(seen, 80)
    assert len(lines) >= 3 and last == ""
    pattern = r"epoch \d+/20: loss \S+, validation loss \S+, validation r2 \S+"
    assert all(re.fullmatch(pattern, each) for each in lines), lines
    assert re.match(r"epoch 20/20 \[#+\] ", bar)


def test_logged_lines_do_not_break_the_bar(child_environment):
    code = FIT + (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "fastmlp.progress.LINE_SECONDS = 0.2; fit(verbose=1)"
    )
    seen, _ = run_in_terminal(code, child_environment)
    *lines, bar, _ = screen(seen, 80)
    assert len(lines) >= 3 and all(re.match(r"epoch \d+/20: loss ", each) for each in lines)
    assert re.match(r"epoch 20/20 \[#+\] ", bar)


def captured(code, environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )


def test_a_program_that_captures_output_gets_none(child_environment):
    done = captured(FIT + "fit()", child_environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_asked_for_is_shown_everywhere_without_control_characters(child_environment):
    code = FIT + "fastmlp.progress.PLAIN_SECONDS = 0.4; fit(progress=True)"
    done = captured(code, child_environment)
    assert done.returncode == 0 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) <= 6 and all(each.isprintable() for each in lines)
    assert all(re.match(r"epoch \d+/20: loss \S+, validation loss ", each) for each in lines)
    assert lines[-1].startswith("epoch 20/20: ") and " left" in lines[0]


def test_a_short_fit_that_is_asked_for_shows_its_end(capsys):
    MLP([5, 2]).fit(X, Y, epochs=4, batch_size=10, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "epoch 4/4: loss" in shown.err and "\r" not in shown.err


def test_an_ensemble_shows_the_same(terminal):
    ensemble = fastmlp.Ensemble([5, 2], members=3)
    ensemble.fit(X, Y, epochs=1, progress=False)
    ensemble.fit(X, Y, epochs=2)
    assert terminal.getvalue() == ""
    ensemble.fit(X, Y, epochs=4, progress=True)
    assert re.search(r"epoch 4/4 \[#+\] loss \S+ \(\S+ to \S+\)", terminal.getvalue())


def test_a_notebook_shows_what_a_terminal_does(notebook, clock):
    history = History("cpu.fused", "cpu", "r2", 70)
    report = Report(10, 7, history, None, 0)
    for epoch in range(10):
        clock.now += 1.0
        history.record(0.5**epoch, 1.0)
        report.epoch()
    report.close()
    shown = drawings(notebook.getvalue())
    assert shown[0].startswith("epoch 1/10 [") and shown[0].endswith(" loss 1, 0:01, 0:09 left")
    assert len(screen(notebook.getvalue(), 80)) == 2
    assert "\x1b" not in notebook.getvalue()


def test_output_that_a_notebook_captures_stays_empty(notebook, captured_error):
    assert progress.open_line(None) is None


def test_a_long_epoch_shows_its_batches(terminal, clock):
    history = History("cpu.fused", "cpu", "r2", 700)
    report = Report(2, 70, history, None, 0)
    for done in range(0, 70, 7):
        clock.now += 0.4
        report.batch(done)
    first = drawings(terminal.getvalue())
    # Before 2 s have gone by: a tenth was done after 0.8 s.
    assert first[0].startswith("epoch 1/2, batch 7/70 [") and first[0].endswith("0:15 left")
    assert first[-1] == "epoch 1/2, batch 63/70 [#########...........] 0:04, 0:05 left"
    report.close()
    assert screen(terminal.getvalue(), 80)[0].startswith("epoch 1/2, batch 63/70 [")


def test_a_fit_that_ends_sooner_than_it_seemed_leaves_nothing(terminal, clock):
    history = History("cpu.fused", "cpu", "r2", 70)
    report = Report(100, 7, history, None, 0)
    clock.now += 1.5
    history.record(0.5, 1.0)
    report.epoch()
    assert "epoch 1/100" in terminal.getvalue()
    report.close()
    assert screen(terminal.getvalue(), 80) == [""]


def test_the_line_is_not_drawn_for_every_epoch(terminal, clock):
    history = History("cpu.fused", "cpu", "r2", 70)
    report = Report(10_000, 7, history, None, 0)
    for _ in range(10_000):
        clock.now += 0.001
        history.record(0.5, 0.001)
        report.epoch()
    assert 80 <= len(drawings(terminal.getvalue())) <= 101


def test_times_are_read_as_clocks():
    assert [progress._clock(each) for each in (0.2, 59.6, 61, 3725)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:02:05",
    ]


def test_a_terminal_that_is_gone_ends_no_fit(terminal, monkeypatch):
    def fail(text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(terminal, "write", fail)
    assert len(MLP([5, 2]).fit(X, Y, epochs=3, progress=True)) == 3


@pytest.mark.parametrize("stream", [None, object()])
def test_standard_error_may_be_anything(stream, monkeypatch):
    replace_standard_error(monkeypatch, stream)
    assert len(MLP([5, 2]).fit(X, Y, epochs=2)) == 2


# Lines of `verbose`.


def test_verbose_is_logged_where_somebody_listens(caplog):
    with caplog.at_level(logging.INFO, "fastmlp"):
        MLP([5, 2]).fit(X, Y, epochs=3, verbose=1)
    assert "epoch 3/3: loss" in caplog.text


def test_verbose_is_printed_where_nobody_listens(child_environment):
    code = (
        "import fastmlp, numpy as np; X = np.ones((4, 2)); "
        "fastmlp.MLP([2, 2]).fit(X, X, epochs=3, batch_size=2, verbose=1)"
    )
    done = captured(code, child_environment)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr.startswith("epoch 3/3: loss") or "\nepoch 3/3: loss" in done.stderr


# Compiling.


def compile_for(seconds):
    return announcing.compile_always(lambda: time.sleep(seconds), "kernels", "once in a while")


@pytest.fixture
def at_once(monkeypatch):
    """Have each compilation be the first for a while, and be shown after 50 ms."""
    monkeypatch.setattr(progress, "COMPILATION_SECONDS", 0.05)
    monkeypatch.setattr(progress._Compilations, "ended", -1e9)


def threads():
    return [each for each in threading.enumerate() if each.name == "fastmlp-progress"]


@pytest.mark.parametrize("place", ["terminal", "notebook"])
def test_compiling_is_shown_while_it_lasts(place, request, at_once):
    stream = request.getfixturevalue(place)
    compile_for(1.3)
    shown = drawings(stream.getvalue())
    assert shown[0] == "fastmlp: compiling kernels (once in a while): 0 s"
    assert shown[-1] == "fastmlp: compiling kernels (once in a while): 1 s"
    assert screen(stream.getvalue(), 80) == [""] and not threads()


def test_compiling_that_is_over_at_once_is_not_shown(terminal, monkeypatch):
    monkeypatch.setattr(progress, "COMPILATION_SECONDS", 5.0)
    compile_for(0.1)
    assert terminal.getvalue() == "" and not threads()


def test_kernels_that_are_compiled_in_turn_are_one_compilation(terminal, monkeypatch):
    monkeypatch.setattr(progress, "COMPILATION_SECONDS", 0.3)
    monkeypatch.setattr(progress._Compilations, "ended", -1e9)
    for _ in range(5):
        compile_for(0.1)
    assert "compiling kernels" in terminal.getvalue()
    assert screen(terminal.getvalue(), 80) == [""]


def test_a_narrow_terminal_has_room_for_less(terminal, monkeypatch, at_once):
    monkeypatch.setenv("COLUMNS", "40")
    compile_for(0.2)
    assert drawings(terminal.getvalue())[0] == "compiling kernels: 0 s"


def test_compiling_that_is_captured_shows_nothing_and_starts_no_thread(
    captured_error, monkeypatch, at_once
):
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self))
    compile_for(0.2)
    assert captured_error.getvalue() == "" and not started


@pytest.mark.parametrize(("asked", "shown"), [(True, True), (None, False), (False, False)])
def test_compiling_in_a_fit_is_shown_as_the_fit_asks(asked, shown, captured_error, at_once):
    @progress.shows_progress
    def fit(progress=None):
        compile_for(0.2)

    fit(progress=asked)
    assert ("compiling kernels (once in a while): 0 s\n" in captured_error.getvalue()) == shown
    assert "\r" not in captured_error.getvalue()


def test_compiling_in_a_fit_without_progress_is_not_shown(terminal, at_once):
    @progress.shows_progress
    def fit(progress=None):
        compile_for(0.2)

    fit(progress=False)
    assert terminal.getvalue() == ""
    fit()
    assert terminal.getvalue() != ""


def test_an_interrupt_of_compiling_leaves_no_thread_and_no_line(terminal, at_once):
    def interrupted():
        time.sleep(0.2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        announcing.compile_always(interrupted, "kernels", "once in a while")
    assert not threads() and screen(terminal.getvalue(), 80) == [""]
    assert "compiling" in terminal.getvalue()


def test_an_interrupt_anywhere_leaves_no_thread(terminal, at_once):
    """Raised before each line in turn that Python runs here to announce a compilation."""
    ours = {announcing.__file__, progress.__file__}

    def interrupted_at(line):
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            if frame.f_code.co_filename not in ours:
                return None
            if event == "line":
                count += 1
                if count == line:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            compile_for(0.1)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    line = 1
    while interrupted_at(line):
        for each in threads():
            each.join(5)
        assert not threads(), line
        line += 1
    assert line > 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
# JAX says it too, once another test has imported it.
@pytest.mark.filterwarnings("ignore:.*multithreaded.*:RuntimeWarning")
def test_a_child_forked_while_compiling_is_shown_can_show_it_too(terminal, at_once):
    other = threading.Thread(target=compile_for, args=(1.0,))
    other.start()
    time.sleep(0.4)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            terminal.seek(0)
            terminal.truncate()
            compile_for(0.3)
            status = 0 if "compiling kernels" in terminal.getvalue() else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    other.join()
    assert ended == (child, 0)


COMPILE = """
import sys
from fastmlp import progress
progress.COMPILATION_SECONDS = 0.0
import fastmlp.dispatch.planning, logging
from fastmlp_kernels import compile
if "log" in sys.argv:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
import small
print(compile.kernel(small.add)(1, 2))
"""


def small_kernel(folder, environment):
    (folder / "small.py").write_text("def add(a, b):\n    return a + b\n")
    (folder / "small-cache").mkdir()
    path = os.pathsep.join([environment["PYTHONPATH"], str(folder)])
    return {**environment, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder / "small-cache")}


def test_a_kernel_is_said_to_be_compiled_once_and_not_when_it_is_loaded(
    tmp_path, child_environment
):
    environment = small_kernel(tmp_path, child_environment)
    seen, printed = run_in_terminal(COMPILE, environment)
    assert "compiling kernels (once per installation and version): 0 s" in seen
    assert screen(seen, 80) == [""] and printed == "3\n"
    assert run_in_terminal(COMPILE, environment) == ("", "3\n")


def test_a_captured_compilation_is_logged_and_nothing_else(tmp_path, child_environment):
    environment = small_kernel(tmp_path, child_environment)
    done = captured(COMPILE.replace('"log" in sys.argv', "True"), environment)
    said = "compiling kernels (once per installation and version)\n3\n"
    assert (done.stdout, done.stderr) == (said, "")
    done = captured(COMPILE.replace('"log" in sys.argv', "True"), environment)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_without_a_cache_folder_the_message_says_so(tmp_path, child_environment):
    environment = small_kernel(tmp_path, child_environment)
    code = COMPILE.replace("import small", "compile.cache_folder = lambda: None\nimport small")
    seen, _ = run_in_terminal(code, environment)
    assert "in each process, as there is no cache folder" in seen


@pytest.mark.slow
def test_the_first_call_of_an_installation_says_that_it_compiles(tmp_path, child_environment):
    """Also where no fit has prepared anything: a prediction compiles when it runs."""
    environment = {**child_environment, "NUMBA_CACHE_DIR": str(tmp_path)}
    code = "import fastmlp; fastmlp.MLP([3, 4, 3]).predict([[1.0, 2.0, 3.0]])"
    seen, _ = run_in_terminal(code, environment)
    shown = drawings(seen)
    assert all(re.match(r"fastmlp: compiling kernels .*: \d+ s$", each) for each in shown)
    assert len(shown) >= 3 and screen(seen, 80) == [""]
    assert run_in_terminal(code, environment)[0] == ""
