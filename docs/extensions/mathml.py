"""Formulas as MathML: a browser typesets them by itself, without a script and without a network."""

from docutils import nodes
from latex2mathml.converter import convert


def visit_inline(translator, node):
    """Write a formula within a sentence."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_display(translator, node):
    """Write a formula on lines of its own."""
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer, which conf.py names."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
