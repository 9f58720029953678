"""Settings of the site. `python3 dev.py docs` builds it.

Sphinx's source folder is the root of the repository, so that a link from one page to another is the
same in a checkout and on the site.
"""

import importlib
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "docs" / "extensions")]

from pygments.lexers.special import TextLexer  # noqa: E402

from fastmlp.version import VERSION  # noqa: E402

project = "fastmlp"
author = "fastmlp developers"
project_copyright = author
version = release = VERSION

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/guide/*.md",
    "docs/decisions/*.md",
    "docs/reference/**.rst",
    "docs/examples/**.rst",
    "kernels/README.md",
    "benchmarks/results/*.md",
]
exclude_patterns = ["docs/examples/**sg_execution_times.rst"]

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "pictures",
    "rows",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
# Headings of a page may begin anywhere, as in those that others include.
suppress_warnings = ["myst.header", "config.cache"]
html_math_renderer = "mathml"

default_role = "autolink"
autosummary_generate = True


def is_property(fullname, name):
    """Return whether an attribute has words of its own: a field is described as a parameter."""
    module, _, kind = fullname.rpartition(".")
    found = inspect.getattr_static(getattr(importlib.import_module(module), kind), name, None)
    return isinstance(found, property)


autosummary_context = {
    "is_property": is_property,
    # Methods that the package calls itself.
    "internal": [
        "after",
        "append",
        "cast",
        "for_layers",
        "hyper",
        "margin",
        "phrases",
        "rates",
        "record",
        "record_validation",
        "stopping",
        "update_of",
        "watched",
    ],
    # scikit-learn documents the other methods of its estimators.
    "of_estimators": [
        "fit",
        "partial_fit",
        "predict",
        "predict_proba",
        "save",
        "to_sklearn",
    ],
}
autodoc_typehints = "none"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
templates_path = [str(ROOT / "docs" / "templates")]

html_theme = "pydata_sphinx_theme"
html_title = f"fastmlp {VERSION}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["root"]
html_favicon = "static/favicon.svg"
# The theme asks for a mode, and complains in the browser's console where there is none.
html_context = {"default_mode": "auto"}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
}
# Pages that are a section of their own: there is nothing to list beside them.
html_sidebars = {f"docs/{page}": [] for page in ("index", "start", "performance", "faq")}

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "docs/gallery",
    "gallery_dirs": "docs/examples",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "plot_gallery": "True",
    "within_subsection_order": "FileNameSortKey",
    "min_reported_time": 1e9,
}


def setup(app):
    """Have the list of layers in ARCHITECTURE.md shown as it stands."""
    app.add_lexer("layers", TextLexer)
