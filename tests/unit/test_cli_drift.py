"""What a person does about traffic, on the command line, when the domain's name is wrong."""

import pytest
from click.testing import CliRunner

from clipft_tasks.cli.main import main


@pytest.mark.parametrize(
    "command", [["drift", "nowhere"], ["breaker", "nowhere"], ["breaker", "../x", "--reset"], ["label", "a b", "out"]]
)
def test_an_unknown_domain_is_said_with_those_there_are(home, tmp_path, command):
    with CliRunner().isolated_filesystem(tmp_path):
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert f"domain '{command[1]}': there is no such domain" in done.output and "industrial" in done.output
