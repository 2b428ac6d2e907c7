"""HTML page for `dvc plots show` with Vega inside; DVC's own fetches Vega from a network.

The Makefile runs this module; DVC's option `plots.html_template` names the page.
"""

from pathlib import Path

import vl_convert

PLOTS_PAGE = Path(".dvc/plots/page.html")
VEGA_LITE = "5.21"  # DVC's templates and ours are of version 5

# DVC fills in the names in braces.
HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>infini: plots</title>
{refresh_tag}
<style>
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1.5rem; }
img { width: min(36rem, 90vw); }
</style>
<script>
VEGA
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def write_plots_page(file: Path = PLOTS_PAGE) -> None:
    """Write the page with Vega, Vega-Lite and vega-embed in it."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HTML.replace("VEGA", script), encoding="utf-8")


if __name__ == "__main__":
    write_plots_page()
