"""jsonargparse's private API is as this package uses it; a failure says what a new version has changed."""

import jsonargparse

from lightning_ddpm.utils.jsonargparse_internals import restore_parsing_settings


def test_parsing_settings_are_restored() -> None:
    found = getattr(jsonargparse._common, "parsing_settings", None)
    assert isinstance(found, dict), f"jsonargparse {jsonargparse.__version__} keeps its settings elsewhere"
    before = dict(found)
    with restore_parsing_settings():
        jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["torch.nn"])
        assert found != before, f"jsonargparse {jsonargparse.__version__} keeps its lists of imports elsewhere"
    assert found == before
