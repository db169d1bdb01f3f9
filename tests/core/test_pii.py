"""Personal data: found in the ways people write it, counted and scrubbed, and not seen where there is none."""

from __future__ import annotations

import time
from random import Random

import pytest

from benchmarks.identifiers import KINDS
from benchmarks.personal_data import FRAMES, MAKERS
from benchmarks.pii import missed
from tests.secret_formats import planted
from touchstone.pii import find_pii, scrub
from touchstone.privacy import clean, clean_record, privacy_notice, redact_secrets

TOKEN = "q8W3e4R5t6Y7u8I9o0P1a2S3d4F5g6H7"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", "maria.silva+invoices@mail.example.co.uk"),
        ("email", "O'BRIEN_77@EXAMPLE.MUSEUM"),
        ("email", "jürgen@müller-söhne.de"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB29NWBK60161331926819"),
        ("iban", "mt84malt011000012345mtlcast001s"),
        ("card", "4111 1111 1111 1111"),
        ("card", "5500-0000-0000-0004"),
        ("card", "378282246310005"),
        ("card", "3782 822463 10005"),
        ("card", "6759649826438453"),
        ("ssn", "536-22-1234"),
        ("ssn", "536 22 1234"),
        ("ip", "93.184.216.34"),
        ("ip", "2001:db8:85a3::8a2e:370:7334"),
        ("ip", "fe80::1"),
        ("phone", "+49 (0)89 636-48018"),
        ("phone", "(212) 555-0123"),
        ("phone", "020 7946 0958"),
        ("phone", "01 23 45 67 89"),
        ("key", f"sk-{TOKEN}"),
        ("key", f"ghp_{TOKEN}abcd"),
        ("key", "AKIAIOSFODNN7EXAMPLE"),
        ("key", f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{TOKEN}"),
        ("key", "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\n-----END EC PRIVATE KEY-----"),
    ],
)
def test_a_value_is_counted_once_under_its_kind_and_scrubbed(kind: str, value: str) -> None:
    text = f"Please note: {value} (since March 2024)."
    assert find_pii(text) == {kind: 1}
    assert scrub(text) == f"Please note: [{kind}] (since March 2024)."


@pytest.mark.parametrize(("kind", "least"), [(kind, 0.90 if kind == "phone" else 0.99) for kind in MAKERS])
def test_recall_on_generated_values(kind: str, least: float) -> None:
    random = Random(kind)
    values = [MAKERS[kind](random) for _ in range(300)]
    texts = [(value, random.choice(FRAMES).format(value)) for value in values]
    assert sum(kind in find_pii(text) and value not in scrub(text) for value, text in texts) / len(texts) >= least


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DE89 3704 0044 0532 0130 01 has a wrong check digit, and so has 4111 1111 1111 1112.",
        "Order 1234567890123456 of 04/02/2014, invoice 2024-0017, ISBN 978-3-16-148410-0",
        "Version 1.12.4.2, section 4.3.2.1, EC 3.4.21.4, lz4>=1.7.4.2, mask 255.255.255.0 on 127.0.0.1, 0.0.0.0",
        "a[10::2] std::add Face::bad 12:30:45 00:1a:2b:3c:4d:5e ::1",
        "p = 0.0023, n = 12 345, 1982-2014, +253%, (-1.5 to +2.25), 10.5 +/- 3.2, 1,234,567.89",
        "000-12-3456, 666-12-3456, 912-34-5678 and 123-00-4567 are no social security numbers",
        "git@github.com:acme/tool.git, logo@2x.png, @app.route, pkg@1.2.3, user@localhost",
        "password: your_password, api_key=os.environ['KEY'], secret = None, password: <hidden>, the token is important",
        "postgres://user:password@host/db and sk-learn-style-estimators and the risk-adjusted-rate-of-return",
        "550e8400-e29b-41d4-a716-446655440000 at 1700000000, timestamp 1700000000000",
    ],
)
def test_what_is_nobodys_is_left_alone(text: str) -> None:
    assert find_pii(text) == {}
    assert scrub(text) == text


def test_findings_are_counted_by_kind_and_their_values_are_nowhere() -> None:
    text = (
        "a@example.com, b@example.com, 4111111111111111; IBAN DE89370400440532013000; host 10.1.2.3; password=hunter2!"
    )
    found = find_pii(text)
    assert found == {"email": 2, "card": 1, "iban": 1, "ip": 1, "key": 1}
    assert not any(secret in str(found) for secret in ("example", "4111", "DE89", "10.1", "hunter"))
    assert scrub(text) == "[email], [email], [card]; IBAN [iban]; host [ip]; password=[key]"


def test_passwords_are_found_by_the_word_before_them_and_only_the_value_is_replaced() -> None:
    assert scrub("DB_PASSWORD='Tr0ub4dor&3' # prod") == "DB_PASSWORD='[key]' # prod"
    assert scrub("api_key: 0a1b2c3d4e5f6a7b") == "api_key: [key]"
    assert scrub("postgres://app:s3cr3t99@db/x") == "postgres://app:[key]@db/x"
    assert scrub(f"Authorization: Bearer {TOKEN}") == "Authorization: Bearer [key]"


def test_a_number_that_a_word_calls_a_phone_is_one() -> None:
    assert find_pii("612 345 678") == {}
    assert find_pii("Tel.: 612 345 678") == {"phone": 1}
    assert find_pii("call us at 555-0123") == {"phone": 1}


def test_scrubbing_what_was_scrubbed_changes_nothing() -> None:
    random = Random(7)
    text = " ; ".join(make(random) for make in MAKERS.values())
    assert scrub(scrub(text)) == scrub(text)


def test_error_texts_lose_every_key_that_is_known_by_its_shape() -> None:
    for value in (f"xoxb-123456789012-{TOKEN}", "AKIAIOSFODNN7EXAMPLE", f"glpat-{TOKEN}"):
        assert redact_secrets(f"refused: {value}!") == "refused: [redacted]!"


UNITS = (
    "a",
    "1",
    "1 ",
    "12-",
    "@",
    "a@",
    "a.",
    "x@a.",
    ":",
    "f:",
    "1.",
    "eyJaaaaaaaa.",
    "-eyJaaaaaaaa",
    "password=",
    "://a:",
)
MORE_UNITS = (
    "DE12",
    "DE12 ",
    "(0",
    "+1",
    "00 ",
    "tel 12 ",
    "4111 ",
    "SSN",
    "sk-",
    "-----BEGIN PRIVATE KEY-----a",
    "-----BEGIN PRIVATE KEY-----\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
    "a@b.co ",
)


@pytest.mark.parametrize("unit", [*UNITS, *MORE_UNITS])
def test_the_time_is_linear_in_the_text(unit: str) -> None:
    """200 KB in a second even on a busy machine; anything quadratic takes minutes."""
    started = time.process_time()
    find_pii(unit * (200_000 // len(unit)))
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "around", ["{}", "The key is {}, keep it.", "first\n{}\nlast", "first\\n{}\\nlast", '{{"answer": "{}"}}']
)
def test_secrets_of_every_planted_format_are_found_wherever_they_stand(around: str) -> None:
    for seed in range(10):
        for name, (text, secret) in planted(f"{seed}").items():
            whole = around.format(text)
            assert secret not in scrub(whole), name
            assert secret not in clean(whole), name


@pytest.mark.parametrize(("kind", "least"), [(kind, 0.90 if kind == "phone" else 0.99) for kind in KINDS])
def test_recall_on_identifiers_made_from_their_standards(kind: str, least: float) -> None:
    random = Random(f"test {kind}")
    assert sum(not missed(kind, random) for _ in range(300)) / 300 >= least


def test_what_the_golden_case_says_itself_is_left_but_for_keys() -> None:
    text = f"Write to help@acme.example or jo@acme.example, key sk-{TOKEN}"
    assert scrub(text, f"help@acme.example sk-{TOKEN}") == "Write to help@acme.example or [email], key [key]"


def test_a_private_key_that_is_cut_off_goes_too() -> None:
    assert scrub(f"-----BEGIN RSA {'PRIVATE'} KEY-----\n{TOKEN}\n{TOKEN}") == "[key]"


def test_a_bearer_token_goes_with_its_header() -> None:
    assert redact_secrets("Authorization: Bearer abcdefgh-ijk") == "[redacted]"


def test_in_a_log_the_address_of_a_server_stays_and_that_of_a_client_goes() -> None:
    line = "http://10.1.2.3:5000/#/runs asked by 10.9.8.7, jo@acme.example"
    assert clean(line) == "http://10.1.2.3:5000/#/runs asked by [ip], [email]"


def test_a_picture_in_a_page_is_left_as_it_is() -> None:
    picture = "![chart](data:image/png;base64,iVBORw0KGgo4111111111111111AKIAIOSFODNN7EXAMPLE==)"
    assert clean(f"jo@acme.example {picture}") == f"[email] {picture}"


def test_a_record_keeps_identifiers_names_and_definitions_and_loses_prose() -> None:
    digest = "5" * 16
    record = {
        "reason": "asked by jo@acme.example",
        "by": "Ada <ada@acme.example>",
        "gate_key": digest,
        "model": f"sk-{TOKEN}",
        "metrics": [1, 2.5, None, True],
        "deployment": {"definition": {"prompt": "call 020 7946 0958 for help"}},
    }
    cleaned = clean_record(record)
    assert cleaned == record | {"reason": "asked by [email]", "model": "[key]"}
    assert clean_record(cleaned) is cleaned


def test_the_notice_says_what_is_not_covered() -> None:
    assert "NOT covered: names of people, postal addresses" in privacy_notice()
    assert "names of people" not in privacy_notice("Presidio")
