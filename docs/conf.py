"""How Sphinx builds the site from docs/_build/source (written by stage.py). Nothing is loaded from elsewhere."""

project = "ArtGPT-4, the executable paper"
author = "the authors of this repository"
project_copyright = "2026 onwards, the authors of this repository; Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
nitpicky = True  # a name in the reference that leads nowhere is a warning, and warnings are errors

nb_execution_mode = "off"  # the chapters have been executed: see execute.py
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
add_module_names = False
copybutton_selector = "div.cell_input pre, div.highlight-bash pre, div.highlight-console pre"

html_theme = "furo"
html_title = "ArtGPT-4"
pygments_dark_style = "github-dark"
html_static_path = ["static", "_build/vendor"]
html_css_files = ["custom.css"]
html_favicon = "static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {
    "options": {"enableMenu": False},
    "svg": {"fontCache": "global"},
    "tex": {"inlineMath": [["\\(", "\\)"]], "displayMath": [["\\[", "\\]"]]},
}
_common = {
    "font-stack": "'Source Serif 4', Charter, Georgia, serif",
    "font-stack--monospace": "'JetBrains Mono', Menlo, Consolas, monospace",
    "font-stack--headings": "Inter, 'Helvetica Neue', Arial, sans-serif",
    "color-api-name": "var(--color-brand-content)",
    "color-api-pre-name": "var(--color-brand-content)",
    "color-sidebar-link-text": "var(--color-foreground-secondary)",
    "color-sidebar-link-text--top-level": "var(--color-foreground-secondary)",
}
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": _common
    | {
        "color-brand-primary": "#8f3a14",
        "color-brand-content": "#8f3a14",
        "color-brand-visited": "#8f3a14",
        "color-background-primary": "#fefdfb",
        "color-background-secondary": "#f7f4ee",
        "color-background-hover": "#efe9de",
        "color-background-border": "#e6e0d4",
        "color-code-background": "#f7f4ee",
        "color-foreground-primary": "#25221e",
    },
    "dark_css_variables": {
        "color-brand-primary": "#f0a878",
        "color-brand-content": "#f0a878",
        "color-brand-visited": "#f0a878",
        "color-background-primary": "#161514",
        "color-background-secondary": "#1d1b19",
        "color-background-hover": "#2a2724",
        "color-background-border": "#34302c",
        "color-code-background": "#1f1d1b",
        "color-foreground-primary": "#d9d4cc",
    },
}
