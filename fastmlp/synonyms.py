"""Names of other libraries for the rows of our tables, and answers to names that we do not have.

A *synonym* means exactly one row of ours. It is accepted, and the row's own name is stored. An
*answer* is the hint of an error, for a name whose numbers would differ or that belongs elsewhere.
Names are compared without case and punctuation, so ``"LeakyReLU"`` is ``leaky_relu``.
"""

from collections.abc import Collection, Iterable, Mapping

# The key is the kind of a table of the algebra, or the name of an argument. Only letters and digits
# of a name count.
SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "activation": {
        "linear": "identity",
        "none": "identity",
        "logistic": "sigmoid",
        "swish": "silu",
        "hardsilu": "hard_swish",
        "exponential": "exp",
        "geluapproximate": "gelu_tanh",
        "gelunew": "gelu_tanh",
    },
    "loss": {
        "mse": "squared_error",
        "mseloss": "squared_error",
        "meansquarederror": "squared_error",
        "mae": "absolute_error",
        "maeloss": "absolute_error",
        "meanabsoluteerror": "absolute_error",
        "l1": "absolute_error",
        "l1loss": "absolute_error",
        "huberloss": "huber",
        "smoothl1": "huber",
        "pinball": "quantile",
        "pinballloss": "quantile",
        "quantileloss": "quantile",
        "sigmoidfocalloss": "binary_focal",
        "gaussiannllloss": "gaussian_nll",
        "smoothl1loss": "huber",
        "bce": "binary_cross_entropy",
        "bceloss": "binary_cross_entropy",
        "crossentropy": "softmax_cross_entropy",
        "crossentropyloss": "softmax_cross_entropy",
        "categoricalcrossentropy": "softmax_cross_entropy",
        "sparsecategoricalcrossentropy": "softmax_cross_entropy",
    },
    "initializer": {
        "xavieruniform": "glorot_uniform",
        "xaviernormal": "glorot_normal",
        "kaiminguniform": "he_uniform",
        "kaimingnormal": "he_normal",
        "zero": "zeros",
    },
    "device": {"gpu": "cuda", "nvidia": "cuda"},
    "dtype": {
        "torchfloat32": "float32",
        "torchfloat64": "float64",
        "fp32": "float32",
        "fp64": "float64",
        "torchdouble": "float64",
        "torchfloat": "float32",
    },
    "precision": {"bf16": "bfloat16", "fp32": "float32"},
    "reduction": {"average": "mean", "avg": "mean"},
    "metric": {
        "acc": "accuracy",
        "r2score": "r2",
        "rsquared": "r2",
        "meanabsoluteerror": "mae",
        "absoluteerror": "mae",
        "rootmeansquarederror": "rmse",
        "auc": "roc_auc",
        "auroc": "roc_auc",
        "rocaucscore": "roc_auc",
    },
    "monitor": {
        "valloss": "validation_loss",
        "valscore": "validation_score",
        "trainloss": "loss",
        "valaccuracy": "validation_accuracy",
        "valacc": "validation_accuracy",
        "valr2": "validation_r2",
        "valmae": "validation_mae",
        "valrmse": "validation_rmse",
        "valauc": "validation_roc_auc",
    },
}

_FANS = "did you mean '{0}_uniform' or '{0}_normal'?"
_GLOROT, _HE, _LECUN = (_FANS.format(name) for name in ("glorot", "he", "lecun"))
_SOFTMAX = (
    "the softmax is a part of the loss: write 'identity' at the output with "
    "loss='softmax_cross_entropy', and predict returns probabilities"
)
_LOG_PROBABILITIES = (
    "did you mean 'softmax_cross_entropy'? It takes logits: write 'identity' at the output, and "
    "no logarithm of a softmax"
)
_LOGITS = (
    "did you mean 'binary_cross_entropy' with 'sigmoid' at the output? The two are computed "
    "together from the logits, and never overflow"
)
_FOCAL = "did you mean BinaryFocal(gamma=2, alpha=0.25) with 'sigmoid' at the output?"
_HALF = (
    "did you mean 'half_squared_error', (p - y)^2 / 2, or 'squared_error', which is twice as large?"
)
_ONE_GPU = "did you mean 'cuda'? It is the first GPU that CUDA_VISIBLE_DEVICES shows"
_NO_KERNELS = "did you mean 'cpu'? There are kernels for CPUs and for NVIDIA GPUs only"
_HALF_FLOATS = (
    "did you mean 'float32'? Arrays of {} are accepted and computed in it; on a GPU, "
    "MLP(..., precision='bfloat16') permits the products to round"
)
_A_FUNCTION = (
    "a function f(y, prediction) is a metric too, such as one that calls sklearn.metrics: "
    "metrics=[f]"
)
_LOSS_IS_THERE = "the loss is there without a name: evaluate(X, y).loss"
_ROOT = "did you mean 'rmse', its root?"
_A_DEVICE = "did you mean device={!r}?"

ANSWERS: Mapping[str, Mapping[str, str]] = {
    "activation": {
        "softmax": _SOFTMAX,
        "logsoftmax": _SOFTMAX,
        "prelu": "did you mean 'leaky_relu'? Its slope below 0 is 0.01 and is not learnt",
        "relu6": "did you mean 'relu'? There is none with an upper end",
        "mish": "did you mean 'silu'? It is the nearest to mish",
    },
    "loss": {
        "bcewithlogits": _LOGITS,
        "bcewithlogitsloss": _LOGITS,
        "logloss": "did you mean 'binary_cross_entropy' (one output, or several that are "
        "independent) or 'softmax_cross_entropy' (one of several classes)?",
        "nll": _LOG_PROBABILITIES,
        "nllloss": _LOG_PROBABILITIES,
        "negativeloglikelihood": _LOG_PROBABILITIES,
        "l2": _HALF,
        "l2loss": _HALF,
        "focal": _FOCAL,
        "focalloss": _FOCAL,
        "binaryfocalcrossentropy": _FOCAL,
        "rmse": "did you mean 'squared_error'? It has its minimum at the same parameters",
        "hinge": "did you mean 'binary_cross_entropy' with 'sigmoid' at the output?",
        "poissonnll": "did you mean 'poisson' with 'exp' at the output?",
        "poissonnllloss": "did you mean 'poisson' with 'exp' at the output?",
        "accuracy": "accuracy has no gradient: did you mean 'softmax_cross_entropy'?",
    },
    "initializer": {
        "glorot": _GLOROT,
        "xavier": _GLOROT,
        "he": _HE,
        "kaiming": _HE,
        "lecun": _LECUN,
        "normal": "weights of one's own are assigned: model.weights[0] = ...",
        "uniform": "weights of one's own are assigned: model.weights[0] = ...",
    },
    "device": {
        "cuda0": _ONE_GPU,
        "cuda1": _ONE_GPU,
        "gpu0": _ONE_GPU,
        "tpu": _NO_KERNELS,
        "mps": _NO_KERNELS,
        "metal": _NO_KERNELS,
        "rocm": _NO_KERNELS,
        "xpu": _NO_KERNELS,
    },
    "kernel": {
        "cpu": _A_DEVICE.format("cpu"),
        "cuda": _A_DEVICE.format("cuda"),
        "gpu": _A_DEVICE.format("cuda"),
        "auto": "the default, None, takes the fastest",
    },
    "dtype": {
        "float16": _HALF_FLOATS.format("float16"),
        "half": _HALF_FLOATS.format("float16"),
        "fp16": _HALF_FLOATS.format("float16"),
        "torchfloat16": _HALF_FLOATS.format("float16"),
        "torchbfloat16": _HALF_FLOATS.format("bfloat16"),
        "bfloat16": _HALF_FLOATS.format("bfloat16"),
    },
    "precision": {
        "float64": "did you mean dtype='float64'?",
        "float16": "did you mean 'bfloat16'?",
    },
    "reduction": {
        "none": "the loss of each row is that of value_and_grad on it alone",
    },
    "metric": {
        "mse": _ROOT,
        "meansquarederror": _ROOT,
        "loss": _LOSS_IS_THERE,
        "f1": _A_FUNCTION,
        "precision": _A_FUNCTION,
        "recall": _A_FUNCTION,
        "mape": _A_FUNCTION,
    },
    "monitor": {
        "accuracy": "did you mean 'validation_accuracy'?",
    },
}

_RATE = "the rate belongs to the optimizer: optimizer=Adam(learning_rate=1e-3)"
_MOMENTUM = "it belongs to the optimizer: optimizer=SGD(0.01, momentum=0.9)"
_STOPPING = "did you mean early_stopping=EarlyStopping(patience=10)?"
_SIZES = "did you mean sizes? All layers stand there, inputs first: MLP([784, 256, 10])"
_NO_NORM = "there is none; dropout=, l2= and early_stopping= keep a network from overfitting"

# Keywords of other libraries, with our keyword, or with several where it depends on the call.
KEYWORDS: Mapping[str, str] = {
    "nepochs": "epochs",
    "numepochs": "epochs",
    "nbepoch": "epochs",
    "niter": "epochs",
    "maxiter": "epochs",
    "iterations": "epochs",
    "bs": "batch_size",
    "batch": "batch_size",
    "minibatchsize": "batch_size",
    "activation": "activations",
    "actfun": "activations",
    "lossfn": "loss",
    "lossfunction": "loss",
    "criterion": "loss",
    "objective": "loss",
    "randomstate": "seed",
    "randomseed": "seed",
    "kernelinitializer": "initializer",
    "init": "initializer",
    "solver": "optimizer",
    "optim": "optimizer",
    "opt": "optimizer",
    "alpha": "l2 decay",
    "evalset": "validation_data",
    "valdata": "validation_data",
    "validation": "validation_data",
    "validationfraction": "validation_split",
    "valsplit": "validation_split",
    "metric": "metrics",
    "evalmetric": "metrics",
    "evalmetrics": "metrics",
    "scoring": "metrics",
    "greaterisbetter": "higher_is_better",
    "maximize": "higher_is_better",
    "callback": "callbacks",
    "njobs": "threads",
    "numthreads": "threads",
    "nthreads": "threads",
    "workers": "threads",
    "nmodels": "members",
    "nestimators": "members",
    "mindelta": "tolerance",
    "tol": "tolerance",
    "eps": "epsilon",
    "nesterovsmomentum": "nesterov",
    "restorebestweights": "restore_best",
    "rho": "decay",
    "eta": "learning_rate",
    "lr": "learning_rate",
    "learningrateinit": "learning_rate",
    "stepsize": "learning_rate",
}
KEYWORD_ANSWERS: Mapping[str, str] = {
    "learningrate": _RATE,
    "momentum": _MOMENTUM,
    "nesterov": _MOMENTUM,
    **dict.fromkeys(
        ("clipnorm", "globalclipnorm", "maxnorm", "maxgradnorm", "gradclip"),
        "did you mean clip_norm= of the optimizer: Adam(clip_norm=1.0)?",
    ),
    "clipvalue": "did you mean clip_value= of the optimizer: Adam(clip_value=0.5)?",
    "weightdecay": "it belongs to the optimizer: optimizer=AdamW(weight_decay=0.01)",
    "betas": "did you mean beta1 and beta2, two numbers?",
    "hidden": _SIZES,
    "hiddenlayers": _SIZES,
    "hiddenlayersizes": _SIZES,
    "hiddensize": _SIZES,
    "hiddendim": _SIZES,
    "hiddenunits": _SIZES,
    "layers": _SIZES,
    "layersizes": _SIZES,
    "units": _SIZES,
    "inputsize": _SIZES,
    "inputdim": _SIZES,
    "outputsize": _SIZES,
    "batchnorm": _NO_NORM,
    "patience": _STOPPING,
    "tolerance": _STOPPING,
    "niternochange": _STOPPING,
    "mode": "a loss is watched for its minimum and a score for its maximum by themselves",
}

# The call that each of our keywords belongs to, for one that is given to another call.
_OF_A_MODEL = (
    *("sizes", "activations", "loss", "seed", "dtype", "reduction", "precision", "dropout"),
)
_OF_A_FIT = (
    *("epochs", "batch_size", "optimizer", "validation_data", "shuffle", "sample_weight"),
    *("validation_split", "metrics"),
    *("class_weight", "l2", "early_stopping", "callbacks", "resume", "communicator"),
    *("device", "kernel", "threads", "progress", "verbose"),
)
HOMES: Mapping[str, str] = {
    **dict.fromkeys((*_OF_A_MODEL, "initializer", "gain"), "MLP(...), where the network is made"),
    "members": "Ensemble(...)",
    **dict.fromkeys(_OF_A_FIT, "fit"),
}


def normal(name: object) -> str:
    """Return the letters and digits of a name, in lower case."""
    return "".join(each for each in str(name).lower() if each.isalnum())


def resolve(kind: str, name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` means, or None."""
    wanted = normal(name)
    by_normal = {normal(each): each for each in known}
    found = by_normal.get(wanted) or SYNONYMS.get(kind, {}).get(wanted)
    return found if found in by_normal.values() else None


def keyword_hint(got: str, known: Collection[str]) -> str | None:
    """Return the hint about an unknown keyword that other libraries have, or None."""
    wanted = normal(got)
    meant = {normal(each): each for each in known}.get(wanted) or KEYWORDS.get(wanted, got)
    for ours in meant.split():
        if ours in known:
            return f"did you mean {ours}=?"
    ours = meant.split()[0]
    found = KEYWORD_ANSWERS.get(normal(ours))
    if found is None and ours in HOMES:
        return f"{ours}= is a keyword of {HOMES[ours]}"
    return found


def answer(kind: str, name: object) -> str | None:
    """Return the hint about a name that means nothing here, or None."""
    return ANSWERS.get(kind, {}).get(normal(name))
