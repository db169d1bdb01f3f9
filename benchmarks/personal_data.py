"""Personal data that belongs to nobody, made by seed in the ways people write it; benchmarks/scan.py looks for it."""

from __future__ import annotations

import string
from collections.abc import Callable
from ipaddress import IPv6Address
from random import Random

FRAMES = (  # what stands around it
    "{}",
    "Please write down {} and pass it on.",
    "The customer gave {}, we have checked it.",
    "| Maria Silva | {} | open |",
    '{{"name": "A. Jones", "value": "{}", "active": true}}',
    "name,value\nJones,{}\n",
    "Details ({}) are in the file.",
    "Reference: {}.",
    "- {}\n- none\n",
    "<td>{}</td>",
    "In March 2024, 17 of 230 readings failed; {} was noted on page 12.",
)

_LETTERS = string.ascii_uppercase
_NBSP, _NON_BREAKING_HYPHEN = "\u00a0", "\u2011"


def _fill(random: Random, pattern: str) -> str:
    """# becomes a digit, % one from 2 to 9, @ a capital letter, ~ a letter or digit."""
    choices = {"#": string.digits, "%": "23456789", "@": _LETTERS, "~": string.ascii_letters + string.digits}
    return "".join(random.choice(choices.get(mark, mark)) for mark in pattern)


def _word(random: Random) -> str:
    return "".join(random.choices(string.ascii_lowercase, k=random.randint(3, 10)))


_USERS = ("{a}", "{a}.{b}", "{a}_{b}", "{a}77", "{a}+{b}", "{a}-{b}", "x.{b}")
_HOSTS = ("{c}.com", "{c}.co.uk", "mail.{c}.de", "{c}-{b}.org", "{c}.museum", "example.com")


def email(random: Random) -> str:
    words = {name: _word(random) for name in "abc"}
    address = f"{random.choice(_USERS)}@{random.choice(_HOSTS)}".format(**words)
    return random.choice([address, address, address.upper(), address.title(), f"mailto:{address}"])


_IBAN_BODIES = {  # what follows the check digits
    "DE": "#" * 18,
    "FR": "#" * 10 + "@" * 11 + "##",
    "GB": "@@@@" + "#" * 14,
    "NL": "@@@@" + "#" * 10,
    "ES": "#" * 20,
    "IT": "@" + "#" * 10 + "@" * 12,
    "CH": "#" * 5 + "@" * 12,
    "NO": "#" * 11,
    "PL": "#" * 24,
    "BE": "#" * 12,
    "MT": "@@@@#####" + "@" * 18,
    "SE": "#" * 20,
    "SA": "##" + "@" * 18,
}


def iban(random: Random) -> str:
    country = random.choice(list(_IBAN_BODIES))
    body = _fill(random, _IBAN_BODIES[country])
    check = 98 - int("".join(str(int(mark, 36)) for mark in f"{body}{country}00")) % 97
    plain = f"{country}{check:02}{body}"
    groups = [plain[start : start + 4] for start in range(0, len(plain), 4)]
    return random.choice([plain, plain.lower(), *(mark.join(groups) for mark in (" ", "-", _NBSP))])


_CARDS = (  # prefix and length
    *(("4", 16), ("4", 13), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("34", 15), ("37", 15), ("6011", 16)),
    *(("65", 16), ("36", 14), ("3528", 16), ("62", 16), ("62", 19), ("5018", 12), ("6759", 16), ("2200", 16)),
)


def card(random: Random) -> str:
    prefix, length = random.choice(_CARDS)
    body = prefix + _fill(random, "#" * (length - len(prefix) - 1))
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in body[::-2])
    number = body + str(-(doubled + sum(map(int, body[-2::-2]))) % 10)
    ends = {16: (4, 8, 12, 16), 15: (4, 10, 15), 14: (4, 10, 14)}.get(length, (length,))
    groups = [number[start:end] for start, end in zip((0, *ends), ends, strict=False)]
    return random.choice(["", " ", "-", _NBSP]).join(groups)


def ssn(random: Random) -> str:
    area = random.choice([random.randint(1, 665), random.randint(667, 899)])
    parts = f"{area:03}", f"{random.randint(1, 99):02}", f"{random.randint(1, 9999):04}"
    if random.random() < 0.2:
        return random.choice(["SSN ", "SSN: ", "social security number "]) + "".join(parts)
    return random.choice(["-", "-", " ", _NON_BREAKING_HYPHEN]).join(parts)


_IPV4S = ("{}", "{}", "{}:8080", "{}/24", "http://{}/login", "[{}]", "::ffff:{}")
_IPV6S = ("{0.compressed}", "{0.exploded}", "[{0.compressed}]:443", "{0.compressed}/64")


def ip(random: Random) -> str:
    if random.random() < 0.6:
        octets = (random.randint(1, 126), random.randint(0, 255), random.randint(0, 255), random.randint(1, 254))
        return random.choice(_IPV4S).format(".".join(map(str, octets)))
    host = random.getrandbits(random.choice([16, 64, 96]))
    address = random.choice(_IPV6S).format(
        IPv6Address(random.choice([0x2001 << 112, 0x2A02 << 112, 0xFE80 << 112]) + host)
    )
    return random.choice([address, address.upper()])


_PHONES = (  # twenty countries; what is common there stands twice
    *("(%##) %##-####", "%##-%##-####", "%##.%##.####", "+1 %## %## ####", "+1-%##-%##-####", "1-8%%-%##-####"),
    *("(%##) %##-####", "%##-%##-####", "%## %## ####", "+1 (%##) %##-####", "%##%######", "%##-%##-#### x###"),
    *("+44 20 7### ####", "020 7### ####", "07### ######", "+44 7### ######", "+44 (0)20 7### ####", "01### ######"),
    *("+49 30 ########", "030 ########", "0151 ########", "+49 (0)89 ######", "0049 40 #######", "0171/#######"),
    *("+33 1 ## ## ## ##", "01 ## ## ## ##", "06.##.##.##.##", "+33%########", "06########", "(030) ######"),
    *("+91 9#### #####", "9#### #####", "+91-9#########", "0%#-########", "+7 9## ###-##-##", "8 (9##) ###-##-##"),
    *("+34 6## ### ###", "6## ### ###", "+34 91 ### ## ##", "+39 06 #### ####", "+39 3## #######", "3## #######"),
    *("+55 11 9####-####", "(11) 9####-####", "+86 138 #### ####", "138 #### ####", "+81 3-####-####", "03-####-####"),
    *("+61 4## ### ###", "04## ### ###", "+31 20 ### ####", "+41 44 ### ## ##", "044 ### ## ##", "+46 8 ### ### ##"),
)
_SPOKEN = ("{}", "{}", "tel. {}", "phone: {}", "call {}", "mobile {}")


def phone(random: Random) -> str:
    return random.choice(_SPOKEN).format(_fill(random, random.choice(_PHONES)))


_KEYS = (  # what stands before and after so many letters and digits
    *(
        ("sk-", 48, ""),
        ("sk-ant-api03-", 60, ""),
        ("sk_live_", 24, ""),
        ("ghp_", 36, ""),
        ("glpat-", 20, ""),
        ("hf_", 34, ""),
    ),
    *(
        ("AKIA", 16, ""),
        ("AIza", 35, ""),
        ("xoxb-210987654321-", 24, ""),
        ("password=", 9, "7!"),
        ("api_key: ", 31, "1"),
    ),
    *(("postgres://app:", 12, "@db/x"), ("Authorization: Bearer 1", 40, ""), ("DB_PASSWORD='", 14, "#'")),
    ("-----BEGIN RSA PRIVATE KEY-----\n", 64, "\n-----END RSA PRIVATE KEY-----"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJ", 40, ".c2lnbmF0dXJl"),
)


def key(random: Random) -> str:
    before, length, after = random.choice(_KEYS)
    body = "".join(random.choices(string.ascii_letters + string.digits, k=length))
    return before + (body.upper() if before == "AKIA" else body) + after


MAKERS: dict[str, Callable[[Random], str]] = {
    "email": email,
    "iban": iban,
    "card": card,
    "ssn": ssn,
    "ip": ip,
    "phone": phone,
    "key": key,
}
