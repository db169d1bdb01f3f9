"""Identifiers that belong to nobody, generated from the standards that define them; benchmarks/pii.py looks for them.

IBAN: the structures of the SWIFT registry (ISO 13616). Cards: ISO/IEC 7812 with the ranges and lengths of the schemes,
Luhn. E-mail: RFC 5322 dot-atoms and RFC 6531 letters of other scripts. IP: RFC 791, RFC 4291 and RFC 5952. US social
security numbers: areas, groups and serials that the SSA issues. Phones: national plans under ITU-T E.164, as people of
the country write them.
Nothing here looks at the rules of touchstone/pii.py.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random

_DIGITS, _UPPER, _LOWER = string.digits, string.ascii_uppercase, string.ascii_lowercase
_MIXED = _UPPER + _DIGITS

CONTEXTS = (
    "{}",
    "My details are {} in case you need them.",
    "Please update the record to {}.",
    "Is it {}?",
    "it is {}, or was last year",
    "Kunde: {}\nStatus: offen\n",
    "Gracias, es {} y funciona.",
    "({})",
    "<p>{}</p>",
    '"{}"',
    "'{}'",
    '{{"id": 7, "contact": "{}", "ok": true}}',
    "id;value;state\n12;{};new",
    "a\t{}\tb",
    "| 12 | {} | yes |",
    "* {}\n* second\n",
    "> {}\n\nthanks",
    "first line\n{}\nlast line",
    "Ticket 4711 of 2024-03-17: {} (see page 12)",
    "value={}",
    "**{}**",
    "{}; and so on",
)


def _pick(random: Random, letters: str, count: int) -> str:
    return "".join(random.choice(letters) for _ in range(count))


def _word(random: Random, low: int = 3, high: int = 10) -> str:
    return _pick(random, _LOWER, random.randint(low, high))


# --- e-mail
_ATEXT = string.ascii_letters + _DIGITS + "!#$%&'*+-/=?^_`{|}~"
_DOMAINS = (
    "com",
    "org",
    "net",
    "io",
    "de",
    "co.uk",
    "com.br",
    "museum",
    "travel",
    "xn--p1ai",
    "paris",
    "ac.jp",
    "edu.au",
)
_OTHER_SCRIPTS = ("jörg", "zoë", "андрей", "用户", "josé.ñandú", "müller")


def email(random: Random) -> str:
    kind = random.random()
    if kind < 0.70:
        local = random.choice([".", "_", "-", "+", ""]).join(_word(random, 2) for _ in range(random.randint(1, 3)))
        local += random.choice(["", "", str(random.randint(1, 1999))])
    elif kind < 0.85:
        local = _word(random) + random.choice("!#$%&'*/=?^`{|}~") + _word(random)
    elif kind < 0.92:
        local = random.choice(_OTHER_SCRIPTS)
    else:
        local = random.choice(_LOWER) + random.choice(["", "." + _word(random)])
    labels = [_word(random, 1, 12) + random.choice(["", "", f"-{_word(random, 1, 4)}", "1"])]
    labels = [*([random.choice(["mail", "corp", "eu-west-1", "3g"])] if random.random() < 0.3 else []), *labels]
    address = f"{local}@{'.'.join(labels)}.{random.choice(_DOMAINS)}"
    return random.choice([address, address, address, address.upper(), address.capitalize(), f"<{address}>"])


# --- IBAN: country, structure of the BBAN (n digits, a capitals, c either)
_BBAN = (
    "AD4n4n12c AE3n16n AL8n16c AT5n11n AZ4a20c BA3n3n8n2n BE3n7n2n BG4a4n2n8c BH4a14c BR8n5n10n1a1c "
    "BY4c4n16c CH5n12c CR4n14n CY3n5n16c CZ4n6n10n DE8n10n DK4n9n1n DO4c20n EE2n2n11n1n EG4n4n17n "
    "ES4n4n1n1n10n FI3n11n FO4n9n1n FR5n5n11c2n GB4a6n8n GE2a16n GI4a15c GL4n9n1n GR3n4n16c GT4c20c "
    "HR7n10n HU3n4n1n15n1n IE4a6n8n IL3n3n13n IQ4a3n12n IS4n2n6n10n IT1a5n5n12c JO4a4n18c KW4a22c "
    "KZ3n13c LB4n20c LC4a24c LI5n12c LT5n11n LU3n13c LV4a13c LY3n3n15n MC5n5n11c2n MD2c18c ME3n13n2n "
    "MK3n10c2n MR5n5n11n2n MT4a5n18c MU4a2n2n12n3n3a NL4a10n NO4n6n1n PK4a16c PL8n16n PS4a21c "
    "PT4n4n11n2n QA4a21c RO4a16c RS3n13n2n SA2n18c SC4a2n2n16n3a SD2n12n SE3n16n1n SI5n8n2n SK4n6n10n "
    "SM1a5n5n12c ST4n4n11n2n SV4a20n TL3n14n2n TN2n3n13n2n TR5n1n16c UA6n19c VA3n15n VG4a16n XK4n10n2n"
)


def iban(random: Random) -> str:
    entry = random.choice(_BBAN.split(" "))
    country, structure = entry[:2], entry[2:]
    body, count = "", ""
    for mark in structure:
        if mark.isdigit():
            count += mark
        else:
            body += _pick(random, {"n": _DIGITS, "a": _UPPER, "c": _MIXED}[mark], int(count))
            count = ""
    number = "".join(str(int(mark, 36)) for mark in f"{body}{country}00")
    plain = f"{country}{98 - int(number) % 97:02}{body}"
    fours = [plain[at : at + 4] for at in range(0, len(plain), 4)]
    written = random.choice(
        [plain, " ".join(fours), " ".join(fours), "-".join(fours), "\u00a0".join(fours), plain.lower()]
    )
    return random.choice(["", "", "", "IBAN ", "IBAN: "]) + written


# --- payment cards: first digits, lengths
_SCHEMES: tuple[tuple[tuple[int, int], int, tuple[int, ...]], ...] = (
    ((4, 4), 1, (13, 16, 16, 16, 19)),  # Visa
    ((51, 55), 2, (16,)),  # Mastercard
    ((2221, 2720), 4, (16,)),
    ((34, 34), 2, (15,)),  # American Express
    ((37, 37), 2, (15,)),
    ((300, 305), 3, (14, 16)),  # Diners Club
    ((36, 36), 2, (14, 16)),
    ((38, 39), 2, (14, 16)),
    ((6011, 6011), 4, (16, 19)),  # Discover
    ((644, 659), 3, (16, 19)),
    ((3528, 3589), 4, (16, 19)),  # JCB
    ((62, 62), 2, (16, 17, 18, 19)),  # UnionPay
    ((5018, 5018), 4, (12, 13, 16, 19)),  # Maestro
    ((6304, 6304), 4, (12, 16, 19)),
    ((6759, 6763), 4, (12, 16, 19)),
    ((2200, 2204), 4, (16, 19)),  # Mir
    ((508500, 508999), 6, (16,)),  # RuPay
    ((817200, 820999), 6, (16,)),
    ((636368, 636368), 6, (16,)),  # Elo
    ((979200, 979289), 6, (16,)),  # Troy
)


def card(random: Random) -> str:
    (low, high), _, lengths = random.choice(_SCHEMES)
    length = random.choice(lengths)
    body = str(random.randint(low, high))
    body += _pick(random, _DIGITS, length - len(body) - 1)
    total = sum(int(digit) if at % 2 else sum(divmod(2 * int(digit), 10)) for at, digit in enumerate(reversed(body)))
    number = body + str(-total % 10)
    cuts = {14: (4, 6, 4), 15: (4, 6, 5), 16: (4, 4, 4, 4), 19: random.choice([(4, 4, 4, 4, 3), (6, 13)])}.get(
        length, (length,)
    )
    groups, at = [], 0
    for size in cuts:
        groups.append(number[at : at + size])
        at += size
    return random.choice(["", " ", " ", "-", "\u00a0", "."]).join(groups)


# --- social security numbers
def ssn(random: Random) -> str:
    area = random.choice([number for number in range(1, 900) if number != 666])
    parts = (f"{area:03}", f"{random.randint(1, 99):02}", f"{random.randint(1, 9999):04}")
    if random.random() < 0.2:
        label = random.choice(
            ["SSN ", "SSN: ", "SSN#", "ssn=", "Social Security Number: ", "social security no. ", "my SSN is "]
        )
        return label + "".join(parts)
    return random.choice(["", "", "SSN: "]) + random.choice(["-", "-", "-", " "]).join(parts)


# --- IP addresses
def ip(random: Random) -> str:
    if random.random() < 0.5:
        first = random.choice([number for number in range(1, 224) if number != 127])
        address = ".".join(map(str, (first, *(random.randint(0, 255) for _ in range(3)))))
        return random.choice(
            [address, address, address, f"{address}:{random.randint(1, 65535)}", f"{address}/{random.randint(8, 32)}"]
        )
    return random.choice(
        [
            _ipv6(random),
            _ipv6(random),
            f"[{_ipv6(random)}]:443",
            f"{_ipv6(random)}/64",
            f"{_ipv6(random, local=True)}%eth0",
        ]
    )


def _ipv6(random: Random, *, local: bool = False) -> str:
    """Written in full, without leading zeros, or with :: for the longest run of zeros; or with an IPv4 tail."""
    top = (
        0xFE80
        if local
        else random.choice(
            [0x2000 + random.getrandbits(12), 0x2001, 0x2A00 + random.getrandbits(8), 0xFD00 + random.getrandbits(8)]
        )
    )
    middle = [0] * 3 if local else [random.getrandbits(16) for _ in range(3)]
    groups = [top, *middle, *(random.getrandbits(16) for _ in range(4))]
    how = random.random()
    if how < 0.2:
        return ":".join(f"{group:04x}" for group in groups)
    if how < 0.6 and not local:
        written = ":".join(f"{group:x}" for group in groups)
        return written.upper() if random.random() < 0.3 else written
    keep = random.randint(1, 3)
    head = groups[:1] if local else groups[: random.randint(2, 4)]
    return ":".join(f"{group:x}" for group in head) + "::" + ":".join(f"{group:x}" for group in groups[-keep:])


# --- phones: # any digit, N 2 to 9, other marks as they are
_PHONES = {
    "international": (
        "+1 N## N## ####|+1-N##-N##-####|+1 (N##) N##-####|+1N##N######|+44 2# 7### ####|+44 7N## ######|"
        "+44 161 ### ####|+49 3# ########|+49 151 ########|+49 (0)89 ######|+33 6 ## ## ## ##|"
        "+33 1 ## ## ## ##|+39 06 #### ####|+39 3N# ### ####|+34 6N# ### ###|+34 91 ### ## ##|+31 6 ########|"
        "+31 2# ### ####|+32 2 ### ## ##|+32 4N# ## ## ##|+41 44 ### ## ##|+41 79 ### ## ##|+43 1 #######|"
        "+43 664 #######|+45 ## ## ## ##|+46 8 ### ### ##|+46 7# ### ## ##|+47 N## ## ###|+358 4# ### ####|"
        "+48 N## ### ###|+420 N## ### ###|+36 1 ### ####|+30 21 #### ####|+351 9N# ### ###|+353 1 ### ####|"
        "+7 9N# ###-##-##|+380 44 ### ####|+90 5N# ### ## ##|+972 5#-###-####|+971 5# ### ####|"
        "+966 5# ### ####|+20 1# #### ####|+27 82 ### ####|+234 8#N ### ####|+254 7N# ######|+91 9N### #####|"
        "+91-9N########|+86 13N #### ####|+81 3-####-####|+81 9#-####-####|+82 1#-####-####|+65 6### ####|"
        "+852 2### ####|+60 12-### ####|+62 812-####-####|+63 917 ### ####|+66 2 ### ####|+84 9# ### ## ##|"
        "+61 2 #### ####|+61 4N# ### ###|+64 21 ### ###|+55 11 9####-####|+54 11 ####-####|+56 9 #### ####|"
        "+57 3N# ### ####|+52 55 #### ####|0044 2# 7### ####|00 49 3# ######|011 44 2# 7### ####"
    ),
    "national": (
        "(N##) N##-####|N##-N##-####|N##.N##.####|N## N## ####|N##-N##-#### x###|1-800-N##-####|"
        "02# 7### ####|07N## ######|0161 ### ####|01N## ######|03# ########|0151 ########|089/######|"
        "(0221) ######|01 ## ## ## ##|06.##.##.##.##|06########|06 #### ####|02# ### ####|06-########|"
        "02 ### ## ##|047# ## ## ##|044 ### ## ##|079 ### ## ##|01 #######|0664 #######|08-### ### ##|"
        "07#-### ## ##|04# ### ####|(01) ### ####|8 (9N#) ###-##-##|0N32 ### ## ##|05#-###-####|"
        "01# #### ####|082 ### ####|08#N ### ####|09N## ######|03-####-####|09#-####-####|01#-####-####|"
        "012-### ####|0812-####-####|0917 ### ####|02 #### ####|(02) #### ####|04N# ### ###|021 ### ###|"
        "(11) 9####-####|011 ####-####"
    ),
    "national, with the word": (
        "Tel.: ## ## ## ##|phone N## ### ###|mobile 9N### #####|call N##-####|fax: 6### ####|Telefon #######|"
        "tél. 01 ## ## ## ##|WhatsApp 3N# ### ####|cell: N#########|Handy 017# #######"
    ),
}


def phone(random: Random, plan: str = "") -> str:
    pattern = random.choice(_PHONES[plan or random.choices(list(_PHONES), [5, 4, 1])[0]].split("|"))
    choices = {"#": _DIGITS, "N": "23456789"}
    return "".join(random.choice(choices.get(mark, mark)) for mark in pattern)


KINDS: dict[str, Callable[[Random], str]] = {
    "email": email,
    "iban": iban,
    "ssn": ssn,
    "ip": ip,
    "card": card,
    "phone": phone,
}
