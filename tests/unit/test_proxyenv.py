"""HTTPS_PROXY and NO_PROXY as every Go program reads them."""

from __future__ import annotations

import pytest

from kubecore.proxyenv import excluded, proxy_for

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://api:6443", {}, None),
        ("https://api:6443", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https://api:6443", {"https_proxy": PROXY}, PROXY),
        ("https://api:6443", {"HTTPS_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ("https://api:6443", {"HTTP_PROXY": PROXY}, None),
        ("http://api:8080", {"HTTP_PROXY": PROXY, "HTTPS_PROXY": "http://other:1"}, PROXY),
        ("https://api:6443", {"HTTPS_PROXY": PROXY, "NO_PROXY": "api"}, None),
        ("https://api:6443", {"HTTPS_PROXY": PROXY, "no_proxy": "api"}, None),
        ("https://127.0.0.1:6443", {"HTTPS_PROXY": PROXY}, None),
        ("https://localhost:6443", {"HTTPS_PROXY": PROXY}, None),
        ("https://[::1]:6443", {"HTTPS_PROXY": PROXY}, None),
        ("https://10.96.0.1", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.96.0.0/12"}, None),
        ("https://[fd00::1]:443", {"HTTPS_PROXY": PROXY, "NO_PROXY": "fd00::/8"}, None),
    ],
)
def test_which_proxy_leads_to_the_server(url: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environ) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "is_excluded"),
    [
        ("*", "anything", 443, True),
        ("", "api", 443, False),
        (" , ", "api", 443, False),
        ("example.com", "example.com", 443, True),
        ("example.com", "api.example.com", 443, True),
        ("example.com", "badexample.com", 443, False),
        (".example.com", "api.example.com", 443, True),
        (".example.com", "example.com", 443, False),
        ("*.example.com", "api.example.com", 443, True),
        ("EXAMPLE.com", "example.com", 443, True),
        ("api:6443", "api", 6443, True),
        ("api:6443", "api", 443, False),
        ("10.0.0.1", "10.0.0.1", 443, True),
        ("10.0.0.1", "10.0.0.10", 443, False),
        ("10.0.0.1:6443", "10.0.0.1", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("10.0.0.0/99", "10.1.2.3", 443, False),
        ("fd00::1", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("fd00::/8", "10.0.0.1", 443, False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, port: int, *, is_excluded: bool) -> None:
    assert excluded(host, port, no_proxy) is is_excluded
