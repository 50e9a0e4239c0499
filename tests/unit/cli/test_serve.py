"""What `unimoer serve` makes of its options."""

from __future__ import annotations

import pytest

from unimoer.cli.serve import names
from unimoer.errors import UserError

OWN = {"localhost", "127.0.0.1", "[::1]"}


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("127.0.0.1", (), OWN),
        ("127.0.0.2", (), OWN | {"127.0.0.2"}),
        ("LOCALHOST", (), OWN),
        ("::1", (), OWN),
        ("0:0:0:0:0:0:0:1", (), OWN),
        ("0.0.0.0", (), set()),
        ("example.org", (), set()),
        ("0.0.0.0", ("Search.Example",), OWN | {"search.example", "0.0.0.0"}),
        ("2001:db8::5", ("search.example",), OWN | {"search.example", "[2001:db8::5]"}),
    ],
)
def test_names_of_a_server(host: str, allowed: tuple[str, ...], expected: set[str]) -> None:
    assert names(host, allowed) == expected


@pytest.mark.parametrize("name", ["search.example:8443", "https://search.example"])
def test_a_name_is_no_address(name: str) -> None:
    with pytest.raises(UserError, match="a name alone"):
        names("127.0.0.1", [name])
