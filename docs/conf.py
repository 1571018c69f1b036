"""Configuration of the site: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "lightning_ddpm"
author = "the lightning_ddpm developers"
copyright = author
version = release = installed_version("lightning-ddpm")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax in the site itself: formulas need no other server
    "site_pages",
]
exclude_patterns = ["_build", "tutorials/ddpm_from_scratch.py"]

html_theme = "furo"
html_title = "lightning_ddpm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"  # the notebook is committed with its outputs; a test executes it
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
