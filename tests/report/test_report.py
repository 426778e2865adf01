"""report.md, what it says of missing inputs, and sections of a README."""

import io
import json
import shutil

import pytest
from rich.console import Console

from eenet_jax.errors import InputError
from eenet_jax.report.header import command_text
from eenet_jax.report.report import (
    experiments_section,
    print_table,
    report_tables,
    write_report,
)
from eenet_jax.report.sources import read_sources


def test_the_report_holds_every_table_and_figure(report_folders):
    inputs, out = report_folders
    text = (out / "report.md").read_text()
    for table in report_tables(read_sources(inputs)):
        assert table.markdown() in text
    for picture in (out / "figures").iterdir():
        assert f"figures/{picture.name}" in text
    assert text.startswith("# Adaptive inference: cnn on digits\n")
    assert "1 min 15 s" in text
    assert "Left out" not in text


def test_a_fit_alone_makes_a_report_that_says_what_it_lacks(folders, tmp_path):
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(folders[1] / "frontier.csv", lonely)
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "speedup.png").write_text("of an earlier report")
    (out / "figures" / "mine.png").write_text("of the user")
    text = write_report([lonely], out, title="Alone").read_text()
    assert text.startswith("# Alone\n")
    for missing in (
        "Accuracy per exit",
        "no comparison.csv",
        "no execution.json",
        "Training curves",
    ):
        assert missing in text
    assert "Easiest hardest: no saved policy" in text
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        "accuracy_cost.png",
        "exit_rates.png",
        "mine.png",
    ]


def test_a_set_that_cannot_be_opened_costs_only_the_gallery(folders, tmp_path):
    def unprepared(meta, ids):
        raise InputError("'digits' is not prepared")

    out = tmp_path / "out"
    text = write_report(folders, out, images=unprepared).read_text()
    assert "Easiest hardest: 'digits' is not prepared" in text
    assert not (out / "figures" / "easiest_hardest.png").exists()
    assert (out / "figures" / "accuracy_cost.png").exists()


def test_val_rows_alone_are_reported_as_such(folders, tmp_path):
    lines = (folders[1] / "frontier.csv").read_text().splitlines()
    (folders[1] / "frontier.csv").write_text(
        "\n".join(x for x in lines if ",test," not in x) + "\n"
    )
    text = write_report(folders[1:], tmp_path / "out").read_text()
    assert "Accuracy on val (%)" in text
    assert "fit with `--test`" in text


def test_a_readme_section_is_replaced_and_the_rest_kept(folders, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n\n<!-- begin other -->\nkept\n<!-- end other -->\n")
    for _ in range(2):
        write_report(folders, tmp_path / "out", readme=readme, section="digits")
    text = readme.read_text()
    assert text.startswith("# Mine\n\n<!-- begin other -->\nkept\n<!-- end other -->\n\n")
    assert text.count("<!-- begin digits -->") == 1
    assert "Accuracy on test (%)" in text
    assert str(tmp_path) not in text
    with pytest.raises(InputError, match="give both or neither"):
        write_report(folders, tmp_path / "out", readme=readme)


def test_sections_are_idempotent_and_checked():
    first = experiments_section("before\n", "a", "one")
    assert first == "before\n\n<!-- begin a -->\none\n<!-- end a -->\n"
    assert experiments_section(first, "a", "one") == first
    second = experiments_section(first + "after\n", "a", "two")
    assert second == "before\n\n<!-- begin a -->\ntwo\n<!-- end a -->\nafter\n"
    assert experiments_section("", "a", "x") == "<!-- begin a -->\nx\n<!-- end a -->\n"
    with pytest.raises(InputError, match="keep one of each"):
        experiments_section("<!-- begin a -->", "a", "x")


def test_an_output_that_is_a_file_is_refused(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_report(folders, tmp_path / "file")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_shows_whole_cells_at_any_width(report_folders, width):
    inputs, _ = report_folders
    sink = io.StringIO()
    print_table(inputs, console=Console(file=sink, width=width))
    text = sink.getvalue()
    for table in report_tables(read_sources(inputs))[2:5]:
        for row in table.rows:
            for cell in row:
                assert cell.replace(" ± ", "±") in text
    assert max(map(len, text.splitlines())) <= width


def test_commands_lose_absolute_paths():
    command = "eenet fit --test=/data/x/test.npz --out /home/me/run --seed 1"
    assert command_text(command) == "`eenet fit --test=test.npz --out run --seed 1`"
    assert command_text(None) == ""


def test_the_header_leaves_paths_out(folders, tmp_path):
    config = json.loads((folders[0] / "config.json").read_text())
    assert config["data"]["folder"] == "/some/where"
    text = write_report(folders, tmp_path / "out").read_text()
    assert "/some/where" not in text
    assert "eenet train x --out c" in text
