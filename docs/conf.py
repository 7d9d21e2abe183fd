"""How the site is built: Sphinx, with tutorials that are executed, and nothing from the network."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Pages are executed by one thread, so that their numbers do not depend on the machine's cores, and
# find the program pyro-moe beside the interpreter that builds them.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
# tqdm warns of a notebook without widgets.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

project = "pyro-moe"
author = "the authors of pyro-moe"
version = release = version_of("pyro-moe")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "site_extensions.offline",
    "site_extensions.docstrings",
]
exclude_patterns = ["_build", "site_extensions"]
default_role = "py:obj"

html_theme = "furo"
html_title = f"pyro-moe {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

mathjax3_config = {"svg": {"scale": 0.92}}
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_output_stderr = "warn"  # which fails the build: pages show no warnings that they do not speak of
nb_merge_streams = True

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]
add_module_names = False
