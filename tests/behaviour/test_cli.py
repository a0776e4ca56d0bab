"""`clipft` in a stranger's hands: which home, which domain, and folders with any name."""

import subprocess
import sys

import pytest
from click.testing import CliRunner, Result
from conftest import small, write_images

from clipft_tasks.cli.main import main
from clipft_tasks.core.settings import settings


def clipft(*words: str) -> Result:
    return CliRunner().invoke(main, [*words])


def options(flat: dict[str, object]) -> list[str]:
    return [f"--{k}={v}" for k, v in flat.items() if k in ("domain", "source", "model.start")]


@pytest.fixture
def nowhere(home, tmp_path, monkeypatch):
    """A folder that has nothing to do with clipft, in a shell that names no home."""
    monkeypatch.delenv("CLIPFT_HOME")
    settings.cache_clear()
    folder = tmp_path / "stranger" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_strangers_folder_gets_no_home(nowhere, table):
    for command in (["ingest", "--domain", "general", "--source", str(table)], ["rollback", "--domain", "general"]):
        done = clipft(*command)
        assert done.exit_code == 1 and "[home.not_found]" in done.output and "CLIPFT_HOME" in done.output
        assert "(new)" not in done.output
    assert not [*nowhere.iterdir()]


def test_the_nearest_home_above_is_the_home_and_is_said(nowhere, table):
    (nowhere.parent / ".clipft").mkdir()
    done = clipft("ingest", "--domain", "general", "--source", str(table))
    assert done.exit_code == 0, done.output
    assert f"home {nowhere.parent / '.clipft'} · domain general\n" in done.stderr
    assert [*(nowhere.parent / ".clipft" / "staging").iterdir()] and not [*nowhere.iterdir()]


def test_in_the_wrong_order_a_stage_names_those_before_it(home, table):
    flat = ["--domain=general", f"--source={table}"]
    said = clipft("version", *flat).output
    assert "in this order: `clipft ingest`, `clipft validate`; or all of it: `clipft run`. [cli.no_result]" in said
    assert clipft("ingest", *flat).exit_code == 0
    assert "in this order: `clipft validate`;" in clipft("version", *flat).output
    assert "`clipft run --domain general --source IMAGES`. [dataset.no_version]" in clipft("plan", "--domain=general").output


def test_without_a_domain_nothing_is_taken_in(home, table):
    done = clipft("ingest", "--source", str(table))
    assert done.exit_code == 1 and "[domain.not_given]" in done.output and "none has data yet" in done.output
    assert "industrial, medical" in done.output and not home.exists()


def test_the_only_domain_with_data_is_meant_and_said(home, table):
    (home / "datasets" / "medical").mkdir(parents=True)
    (home / "datasets" / "medical" / "datacard.json").touch()
    done = clipft("ingest", "--source", str(table))
    assert done.exit_code == 0 and "domain medical (the only one with data)" in done.stderr
    assert "domain: medical" in clipft("spec").stdout
    assert "domain: scientific" in clipft("spec", "--dataset", "scientific/v2").stdout
    (home / "datasets" / "general").mkdir()
    (home / "datasets" / "general" / "datacard.json").touch()
    done = clipft("rollback")
    assert done.exit_code == 1 and "medical and general have data" in done.output


def test_a_home_of_any_name_takes_data_in_and_links_to_no_other_installation(home, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "Jörg" / "my files" / "home"))
    settings.cache_clear()
    flat = options(small(write_images(tmp_path / "Jörg" / "my images", 20), tiny))
    for stage in ("ingest", "validate", "version"):
        done = clipft(stage, *flat)
        assert done.exit_code == 0, (stage, done.output, done.exception)
        assert settings().mlflow_ui not in done.output and ("(new)" in done.stderr) == (stage == "ingest")
        if stage == "validate":
            assert f"Data report: {settings().root.as_uri()}/mlflow/" in done.output
    assert '"dataset": "general/v1"' in done.output


def test_the_list_of_commands_is_grouped_whole_and_loads_no_http_library():
    said = clipft("--help").output
    assert "…" not in said and "..." not in said.partition("Options:")[2] and "stage by stage:" in said
    assert all(f"\n  {name} " in said for name in main.commands)
    code = "import sys, clipft_tasks.cli; print({'httpx', 'rich', 'numpy', 'clipft_tasks.contracts.stages'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_options_of_a_run_stand_under_the_forms_headings():
    said = clipft("run", "--help").output
    assert said.index("What to run:") < said.index("--domain") < said.index("Training:") < said.index("--train.epochs")
