"""The page around `dvc plots show`: Vega within it, where DVC's own fetches it from a network.

`make setup` runs this and tells DVC of the file. `dvc config plots.html_template` is the option.
"""

from pathlib import Path

import vl_convert

FILE = Path(".dvc/plots/page.html")
VEGA_LITE = "5.21"  # DVC's templates and ours are of version 5

# DVC fills in the names in braces.
PAGE = """<!doctype html>
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


def write(file: Path = FILE) -> None:
    """Vega, Vega-Lite and vega-embed in a page."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAGE.replace("VEGA", script), encoding="utf-8")


if __name__ == "__main__":
    write()
