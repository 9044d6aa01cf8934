"""The examples of the standards themselves: RFC 7515 (appendix A) and RFC 8037 (appendix A)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from istio_auth.jwks import EVERY_ALGORITHM, KeySet
from istio_auth.tokens import TokenFault, TokenRefused, verify_token
from istio_auth.tokens.compact import take_apart
from istio_auth.tokens.verify import check_signature

END = datetime.fromtimestamp(1300819380, UTC)
PAYLOAD = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
KEYS = KeySet.from_document(
    {
        "keys": [
            {
                "kty": "RSA",
                "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql"
                "L-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e"
                "-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_"
                "h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
                "e": "AQAB",
            },
            {
                "kty": "EC",
                "crv": "P-256",
                "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            },
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        ]
    }
)
RS256 = (  # RFC 7515 A.2
    f"eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5"
    "YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0Ga"
    "rZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhW"
    "kWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
ES256 = (  # RFC 7515 A.3
    f"eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
)
HS256 = (
    f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{PAYLOAD}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"  # RFC 7515 A.1
)
UNSECURED = f"eyJhbGciOiJub25lIn0.{PAYLOAD}."  # RFC 7515 A.5
EDDSA = (  # RFC 8037 A.4
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
    "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)


@pytest.mark.parametrize("token", [RS256, ES256])
def test_a_token_of_the_standard_passes_until_its_end(token: str) -> None:
    leeway = timedelta(minutes=1)
    claims = verify_token(token, KEYS, issuer="joe", audiences=None, now=END, leeway=leeway)
    assert (claims.issuer, claims.expires_at, claims.members["http://example.com/is_root"]) == ("joe", END, True)
    with pytest.raises(TokenRefused) as caught:
        verify_token(token, KEYS, issuer="joe", audiences=None, now=END + leeway, leeway=leeway)
    assert caught.value.fault is TokenFault.EXPIRED


@pytest.mark.parametrize("token", [RS256, ES256, EDDSA])
def test_a_signature_of_the_standard_is_right_and_with_one_other_bit_is_not(token: str) -> None:
    parts = take_apart(token)
    check_signature(parts, KEYS, EVERY_ALGORITHM)
    signature = parts.signature[:-1] + bytes([parts.signature[-1] ^ 1])
    for wrong in (parts._replace(signature=signature), parts._replace(signed=parts.signed + b"A")):
        with pytest.raises(TokenRefused) as caught:
            check_signature(wrong, KEYS, EVERY_ALGORITHM)
        assert caught.value.fault is TokenFault.UNKNOWN_KEY


@pytest.mark.parametrize("token", [HS256, UNSECURED])
def test_what_the_standard_allows_and_we_do_not_is_refused(token: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        verify_token(token, KEYS, issuer="joe", audiences=None, now=END, algorithms=EVERY_ALGORITHM)
    assert caught.value.fault is TokenFault.ALGORITHM
