"""What several test modules share: a copy of the repository in which the pipeline has run, at smoke size."""

import pytest

from repository import smoke_run


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "The folder of that copy. Who changes something in it works on a copy of its own."
    folder = tmp_path_factory.mktemp("smoke") / "made"
    smoke_run(folder)
    return folder
