"""A formula of the algebra, which is a Python expression, as LaTeX."""

import ast
import re

# Names that have a sign of their own; all others of several letters are set upright.
SIGNS = {
    "alpha": r"\alpha",
    "beta1": r"\beta_1",
    "beta2": r"\beta_2",
    "delta": r"\delta",
    "epsilon": r"\varepsilon",
    "gamma": r"\gamma",
    "learning_rate": r"\eta",
    "level": r"\tau",
    "momentum": r"\mu",
    "pi": r"\pi",
    "weight_decay": r"\lambda",
    "decay": r"\rho",
}
FUNCTIONS = {"exp", "log", "tanh", "max", "min"}
COMPARISONS = {ast.Gt: ">", ast.GtE: r"\ge", ast.Lt: "<", ast.LtE: r"\le"}
# How tightly each binds: what binds less than its place gets parentheses.
CONDITION, SUM, PRODUCT, POWER, ATOM = range(5)


def name(text):
    """Return a name as LaTeX."""
    if text in SIGNS:
        return SIGNS[text]
    return text if len(text) == 1 else rf"\mathrm{{{text}}}".replace("_", r"\_")


def number(value):
    """Return a number as LaTeX, without digits that only rounding needs."""
    return f"{value:g}" if isinstance(value, float) else str(value)


class Writer:
    """Writes the nodes of an expression; each method returns LaTeX and how tightly it binds."""

    def at(self, node, least):
        """Return a node, in parentheses if it binds less than `least`."""
        text, binds = getattr(self, type(node).__name__)(node)
        return text if binds >= least else rf"\left({text}\right)"

    def Constant(self, node):
        return number(node.value), ATOM

    def Name(self, node):
        return name(node.id), ATOM

    def UnaryOp(self, node):
        return f"-{self.at(node.operand, PRODUCT)}", SUM

    def IfExp(self, node):
        # No brace around cases: a browser stretches one only where it has a font for formulas.
        value, test = self.at(node.body, SUM), self.at(node.test, SUM)
        other = self.at(node.orelse, SUM)
        return rf"{value} \text{{ if }} {test} \text{{, else }} {other}", CONDITION

    def Compare(self, node):
        left, right = self.at(node.left, SUM), self.at(node.comparators[0], SUM)
        return f"{left} {COMPARISONS[type(node.ops[0])]} {right}", SUM

    def Call(self, node):
        called = node.func.id
        inner = ", ".join(self.at(each, SUM) for each in node.args)
        if called == "sqrt":
            return rf"\sqrt{{{inner}}}", ATOM
        if called == "exp":
            return f"e^{{{inner}}}", POWER
        if called == "abs":
            return rf"\left|{inner}\right|", ATOM
        sign = rf"\{called}" if called in FUNCTIONS else name(called)
        return rf"{sign}\left({inner}\right)", ATOM

    def BinOp(self, node):
        left, right, kind = node.left, node.right, type(node.op)
        if kind is ast.Add:
            return f"{self.at(left, SUM)} + {self.at(right, SUM)}", SUM
        if kind is ast.Sub:
            return f"{self.at(left, SUM)} - {self.at(right, PRODUCT)}", SUM
        if kind is ast.Div:
            return rf"\frac{{{self.at(left, SUM)}}}{{{self.at(right, SUM)}}}", ATOM
        if kind is ast.Pow:
            return f"{self.at(left, ATOM)}^{{{self.at(right, SUM)}}}", POWER
        if isinstance(left, ast.UnaryOp):
            # The sign of a product, and not of its first factor alone.
            product = ast.BinOp(left.operand, node.op, right)
            return f"-{self.at(product, PRODUCT)}", PRODUCT
        between = r" \cdot " if isinstance(right, ast.Constant) else r"\,"
        return f"{self.at(left, PRODUCT)}{between}{self.at(right, PRODUCT)}", PRODUCT

    def Assign(self, node):
        # The target is a Name, which stands for what it is from now on.
        return rf"{self.at(node.targets[0], ATOM)} \leftarrow {self.at(node.value, SUM)}", SUM

    def AugAssign(self, node):
        target = self.at(node.target, ATOM)
        sign, least = ("+", SUM) if isinstance(node.op, ast.Add) else ("-", PRODUCT)
        return rf"{target} \leftarrow {target} {sign} {self.at(node.value, least)}", SUM


def formulas(text):
    """Return the LaTeX of an expression, or of each statement of several."""
    try:
        nodes = ast.parse(text).body
    except SyntaxError:
        return [words(text)]
    plain = [node.value if isinstance(node, ast.Expr) else node for node in nodes]
    return [Writer().at(node, CONDITION) for node in plain]


# A loss of a whole row is written with sums and indices, which is no Python.
IN_WORDS = (
    (r"log\(v_j\)", r"\\log v_j"),
    (r"sum_j ", r"\\sum_j "),
    (r"log\(inside\(softmax\(z\)_j\)\)", r"\\log\\,\\mathrm{inside}(\\mathrm{softmax}(z)_j)"),
    (r"log\(softmax\(z\)_j\)", r"\\log\\,\\mathrm{softmax}(z)_j"),
    (r"label_smoothing / classes", r"\\frac{s}{\\mathrm{classes}}"),
    (r"label_smoothing", "s"),
    (r"\(m_j - y_j\)\*\*2 / v_j", r"\\frac{(m_j - y_j)^2}{v_j}"),
    (r"z_\(targets \+ j\)", r"z_{\\mathrm{targets} + j}"),
    (r"max\(exp\((.*?)\), epsilon\)", r"\\max(e^{\1}, \\varepsilon)"),
    (r"\) / 2,", r") / 2, \\quad"),
    (r", v_j =", r", \\quad v_j ="),
)


def words(text):
    """Return the LaTeX of a formula of a row."""
    for pattern, replacement in IN_WORDS:
        text = re.sub(pattern, replacement, text)
    return text
