"""What a model says of itself: the table of its layers, as text and in a notebook."""

import numpy as np

from fastmlp import MLP, Ensemble


def test_a_summary_is_a_table_of_the_layers():
    model = MLP([8, 640, 2], ["tanh", "identity"], dtype="float64")
    assert str(model.summary()).splitlines() == [
        "layer  shape    activation  parameters",
        "1      8 x 640  tanh             5,760",
        "2      640 x 2  identity         1,282",
        "7,042 parameters of float64, 56,336 bytes; loss: half_squared_error",
    ]
    summary = model.summary()
    assert repr(summary) == str(summary)
    assert summary.parameters == model.parameters.size and summary.bytes == model.parameters.nbytes
    shapes = [shape for _, shape, _, _ in summary.layers]
    assert shapes == [each.shape for each in model.weights]


def test_a_summary_of_an_ensemble_counts_all_networks():
    ensemble = Ensemble([3, 5, 1], members=4)
    summary = ensemble.summary()
    assert (summary.parameters, summary.bytes) == (4 * 26, ensemble.parameters.nbytes)
    assert summary.total.startswith("4 networks: 104 parameters of float32, 416 bytes")
    assert sum(count for *_, count in summary.layers) == 26


def test_a_notebook_shows_a_model_as_its_summary():
    model = MLP([3, 5, 1], "tanh", seed=np.int64(4))
    page = model._repr_html_()
    assert "MLP([3, 5, 1]" in page and page.count("<tr>") == 3
    assert "<td>3 x 5</td><td>tanh</td><td>20</td>" in page and "26 parameters" in page
