"""Page of `dvc plots show`: DVC's renderer with our template and Vega inside."""

from pathlib import Path

import vl_convert
from dvc_render import VegaRenderer, render_html

from browser import browser, show
from infini.console import plots_page

TEMPLATES = Path(__file__).parents[2] / ".dvc/plots"
ROWS = [
    {
        "rev": rev,
        "version": version,
        "split": split,
        "epoch": epoch,
        "loss": 1 / epoch,
        "event": "best" if epoch == 2 else "",
    }
    for rev in ("HEAD", "workspace")
    for version in ("v1", "v2")
    for split in ("train", "val")
    for epoch in (1, 2)
]


def curves() -> VegaRenderer:
    settings = {"template": "curves", "template_dir": str(TEMPLATES), "title": "Loss"}
    return VegaRenderer(ROWS, "loss.csv", x="epoch", y="loss", y_label="nats", **settings)


def test_curves_template_has_a_panel_per_revision_and_a_line_per_curve() -> None:
    svg = vl_convert.vegalite_to_svg(curves().get_filled_template())
    for text in ("HEAD", "workspace", "v1", "v2", "train", "val", "nats", "Loss"):
        assert f">{text}<" in svg
    assert svg.count('aria-roledescription="line mark"') == 8  # revision × version × split


def test_plots_page_draws_without_network(tmp_path: Path) -> None:
    frame, file = tmp_path / "page.html", tmp_path / "index.html"
    plots_page.write_plots_page(frame)
    render_html([curves()], file, frame)
    text = file.read_text()
    assert text.count("<script>") == 1
    assert "<script src" not in text
    assert "{plot_divs}" not in text
    with browser() as driver:
        driver.set_script_timeout(300)  # however busy the machine
        show(driver, file.as_uri(), 1280)
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        drawn = driver.execute_async_script(
            "const done = arguments[0], look = () => {"
            "const drawn = document.querySelector('.vega-embed svg');"
            "drawn ? done(drawn.getBoundingClientRect().width) : setTimeout(look, 50)}; look()"
        )
        assert drawn > 800  # two panels of 420
