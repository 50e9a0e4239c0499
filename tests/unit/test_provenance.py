"""Where a number comes from, also in a copy without git."""

from __future__ import annotations

import pytest

from unimoer import provenance


@pytest.mark.parametrize(("said", "commit"), [("0123abc", "0123abc"), ("", None), (None, None)])
def test_without_git_a_variable_says_the_commit(
    said: str | None, commit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    monkeypatch.delenv(provenance.COMMIT, raising=False)
    if said is not None:
        monkeypatch.setenv(provenance.COMMIT, said)
    assert provenance._commit.__wrapped__() == (commit, None)


def test_a_processor_has_no_card() -> None:
    assert provenance.environment("cpu").hardware.gpu is None
