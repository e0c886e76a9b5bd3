"""What every test shares: few threads, a conf/ to compose, a record of what a piece of code did to the machine."""

import contextlib
import sys

import pytest
import torch

torch.set_num_threads(1)


class _Audit:
    """Collects audit events while `on`; a hook cannot be removed, so there is one for the whole session."""

    def __init__(self):
        self.on, self.events = False, []
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        if self.on:
            self.events.append((event, args))

    @contextlib.contextmanager
    def watch(self):
        """The list of (event, arguments) raised inside the block."""
        self.events, self.on = [], True
        try:
            yield self.events
        finally:
            self.on = False


@pytest.fixture(scope="session")
def audit():
    return _Audit()


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A small conf/ of its own: `conf(name="text", …)` writes files, config.CONF_DIR points there."""
    from mmldm import config

    folder = tmp_path / "conf"
    folder.mkdir()
    monkeypatch.setattr(config, "CONF_DIR", folder)

    def write(**files):
        for name, text in files.items():
            file = folder / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return folder

    return write
