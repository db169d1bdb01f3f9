"""Personal data and secrets in text, by kind: counted or replaced, and never returned.

Found are things with a shape: keys and passwords, e-mail addresses, IBANs (ISO 13616), payment cards (ISO 7812), IP
addresses, US social security numbers, phone numbers. Names, postal addresses and whatever else has no shape are not
claimed; docs/validation.md has the measured recall and the share of ordinary text that is hit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from touchstone.key_shapes import find_keys

Span = tuple[int, int]
KINDS = ("key", "email", "iban", "card", "ip", "ssn", "phone")

_EMAIL = re.compile(
    r"(?<![\w.+%'-])[\w.+%'-]{1,64}@(?![1-4]x\.|[0-9]+\.[0-9])(?:[\w-]{1,63}\.){1,8}(?:[Xx][Nn]--[\w-]{2,40}|[^\W\d_]{2,24})(?![\w-])"
)
_NO_MAILBOX = ("git@", "hg@", "svn@")

# As JSON and Python write them inside a string; the letter must not hide what comes after it.
_ESCAPED = re.compile(r"\\[nrt\"']")

_GAP = r"[ \u00a0\u202f.\u2010-\u2013-]"
_IBAN = re.compile(r"\b[A-Za-z]{2}[0-9]{2}(?=[ \u00a0\u202f-]?[A-Za-z0-9])")
_IBAN_GAPS = re.compile(r"[ \u00a0\u202f-]")
_IBAN_LENGTHS = {  # of the SWIFT registry, by country
    entry[:2]: int(entry[2:])
    for entry in re.findall(
        r"\w+",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
        "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
        "YE30",
    )
}

_IPV4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{3,39}(?:(?:\.[0-9]{1,3}){3})?(?![\w:])")
_NUMBERED = re.compile(r"(?:\b(?:version|release|section|v|ver|ec)[ .:]{0,2}|[#§] ?|[<>=~^!]= ?)\Z", re.IGNORECASE)

_CARD = re.compile(
    rf"(?<![\w.+])(?<!\w-)(?:[0-9]{{12,19}}|[0-9]{{4}}(?P<a>{_GAP})[0-9]{{4}}(?P=a)[0-9]{{4}}(?:(?P=a)[0-9]{{1,4}}){{0,2}}"
    rf"|[0-9]{{4}}(?P<b>{_GAP})[0-9]{{6}}(?P=b)[0-9]{{4,5}}|[0-9]{{6}}{_GAP}[0-9]{{6,13}})(?![\w]|[.-][0-9])"
)
_CARD_PREFIXES = (  # of the number's first four digits, with the lengths that are issued
    (range(4000, 5000), (13, 16, 19)),  # Visa
    (range(5100, 5600), (16,)),  # Mastercard
    (range(2221, 2721), (16,)),
    (range(3400, 3500), (15,)),  # American Express
    (range(3700, 3800), (15,)),
    (range(3000, 3060), (14, 16, 19)),  # Diners Club
    (range(3600, 3700), (14, 16, 19)),
    (range(3800, 4000), (14, 16, 19)),
    (range(3528, 3590), (16, 17, 18, 19)),  # JCB
    (range(2200, 2205), (16, 17, 18, 19)),  # Mir
    (range(5000, 5100), tuple(range(12, 20))),  # Maestro
    (range(5600, 5900), tuple(range(12, 20))),
    (range(6000, 7000), tuple(range(12, 20))),  # Maestro, Discover, UnionPay, RuPay
    (range(8100, 8300), (16, 17, 18, 19)),
    (range(9792, 9793), (16,)),  # Troy
)

_SSN = re.compile(
    r"(?<![\w.-])(?!000|666|9)[0-9]{3}(?P<a>[ \u00a0\u2010-\u2013-])(?!00)[0-9]{2}(?P=a)(?!0000)[0-9]{4}(?![\w-])"
    r"|(?i:\bSSN|\bsocial security (?:number|no\.?|#))(?i:[ :#=]{1,3}(?:is |no\.? )?)(?P<bare>[0-9]{9})(?!\w)"
)

# Seven digits with hardly anything between them: only there cards, social security and phone numbers are looked for.
_MANY_DIGITS = re.compile(r"[0-9](?:[^\w\n]{0,3}[0-9]){6}")

_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension) ?[0-9]{1,6})?"
_BETWEEN = r"[ \u00a0\u202f.\u2010-\u2013/-]?"
_PHONES = re.compile(
    rf"(?<![\w.+/-])(?P<number>"
    # +44 20 7946 0958, 0049 (0)30 901820, 001-212-555-0123
    rf"(?:\+|(?<![0-9] )00)[1-9][0-9]{{0,2}}(?:{_BETWEEN}\(?[0-9]{{1,5}}\)?){{2,6}}"
    # 212-555-0123, (212) 555-0123, 1.212.555.0123, 2125550123
    rf"|(?:1{_BETWEEN})?(?:\([2-9][0-9]{{2}}\) ?|[2-9][0-9]{{2}}{_BETWEEN})[2-9][0-9]{{2}}{_BETWEEN}[0-9]{{4}}"
    # with the trunk prefix 0: 020 7946 0958, (030) 901820, 0151/23456789, 01 23 45 67 89
    rf"|(?<![0-9] )\(?0[1-9][0-9]{{0,4}}\)?(?:{_BETWEEN}[0-9]{{2,8}}){{1,5}}"
    # 8 (961) 661-64-38
    rf"|8 ?\([3-9][0-9]{{2}}\) ?[0-9]{{3}}(?:[ -]?[0-9]{{2}}){{2}}"
    # (11) 98765-4321
    rf"|\([1-9][0-9]\) ?[0-9]{{4,5}}-[0-9]{{4}}"
    rf"){_EXTENSION}(?![\w-])(?!\.[0-9])"
)
_DIGITS = re.compile("[0-9]+")
_DATE = re.compile(r"[0-9]{2}([./-])[0-9]{2}\1[0-9]{4}")
# Any digits, when a word before them says what they are.
_SPOKEN_PHONE = re.compile(
    r"\b(?i:tel(?:efon|ephone)?|phone|mobile|cell(?:phone)?|fax|call|whatsapp|sms|hotline|dial|ring|handy|móvil)\b"
    r"[^\n0-9+(]{0,20}(?P<value>\+?\(?[0-9]{2,5}\)?(?:[ .\u2010-\u2013/-]{0,2}[0-9]{2,5}){1,5})(?![\w-])"
)


def find_pii(text: str) -> dict[str, int]:
    """How many findings there are of each kind: key, email, iban, ip, card, ssn, phone; kinds without any are absent.

    Linear in the length of the text. Nothing that was found is returned, so the result may be logged.
    """
    return dict(Counter(kind for _, _, kind in _findings(text)))


def scrub(text: str, known: str = "", *, kinds: Collection[str] = KINDS, servers: bool = True) -> str:
    """`text` with every finding of these kinds replaced by its kind, such as [email]; the rest is as it was.

    What the text `known` says too is left, but for keys. Without `servers` IP addresses in links are left.
    """
    parts = []
    for start, end, kind in _findings(text, kinds):
        is_known = bool(known) and kind != "key" and text[start:end] in known
        is_server = not servers and kind == "ip" and text[:start].endswith(("://", "://["))
        if not (is_known or is_server):
            parts.append((start, end, f"[{kind}]"))
    return _replaced(text, parts)


def _findings(text: str, kinds: Collection[str] = KINDS) -> list[tuple[int, int, str]]:
    """(start, end, kind) in order; no two overlap, because what one kind found is hidden from those after it."""
    found: list[tuple[int, int, str]] = []
    text = _ESCAPED.sub("  ", text) if "\\" in text else text
    for kind, find in _FINDERS.items():
        if kind not in kinds:
            continue
        spans = sorted(set(find(text)))
        found += [(start, end, kind) for start, end in spans]
        text = _replaced(text, [(start, end, "\0" * (end - start)) for start, end in spans])
    return sorted(found)


def _replaced(text: str, parts: list[tuple[int, int, str]]) -> str:
    pieces, last = [], 0
    for start, end, new in parts:
        pieces += [text[last:start], new]
        last = end
    return "".join([*pieces, text[last:]]) if parts else text


def _keys(text: str) -> Iterator[Span]:
    yield from _apart(list(find_keys(text)))


def _apart(spans: list[Span]) -> Iterator[Span]:
    """Without those that overlap an earlier or longer one."""
    last = 0
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= last:
            yield start, end
            last = end


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text) if not match[0].startswith(_NO_MAILBOX))


def _ibans(text: str) -> Iterator[Span]:
    """The country tells the length; ISO 7064 mod 97-10 tells the rest."""
    last = 0
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2].upper())
        if length is None or match.start() < last:
            continue
        window = text[match.start() : match.start() + length + 12]
        gaps = [gap.start() for gap in _IBAN_GAPS.finditer(window)]
        end = length
        for gap in gaps:
            end += gap < end
        number = _IBAN_GAPS.sub("", window[:end])
        after = window[end : end + 1]
        if len(number) == length and number.isascii() and number.isalnum() and not after.isalnum() and _adds_up(number):
            last = match.start() + end
            yield match.start(), last


def _adds_up(iban: str) -> bool:
    return int("".join(str(int(mark, 36)) for mark in iban[4:] + iban[:4])) % 97 == 1


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text) if _MANY_DIGITS.search(text) else ():
        digits = "".join(filter(str.isdigit, match[0]))
        if _is_card(digits):
            yield match.span()


def _is_card(digits: str) -> bool:
    issued = any(int(digits[:4]) in prefix and len(digits) in lengths for prefix, lengths in _CARD_PREFIXES)
    doubled = (sum(divmod(2 * int(c), 10)) for c in digits[-2::-2])
    return issued and (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _addresses(text: str) -> Iterator[Span]:
    """IPv4 and IPv6; not loopback, netmasks and the unspecified address, which are nobody's."""
    for match in _IPV4.finditer(text):
        if _is_ipv4(match[0]) and not _NUMBERED.search(text, max(0, match.start() - 12), match.start()):
            yield match.span()
    if ":" in text:
        for match in _IPV6.finditer(text):
            address = match[0].rstrip(":") if not match[0].endswith("::") else match[0]
            if _is_ipv6(address):
                yield match.start(), match.start() + len(address)


def _is_ipv4(text: str) -> bool:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or text.startswith("255."))


def _is_ipv6(text: str) -> bool:
    """Slices and scopes of programs (1::2, std::add) are written the same, so a short one must look like a host."""
    groups = [group for group in text.split(":") if group]
    if len(groups) < 3 and not re.match(r"[23f][0-9a-f]{3}\Z", groups[0].lower() if groups else ""):
        return False
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return False
    return any(c.isdigit() for c in text) and not (address.is_loopback or address.is_unspecified)


def _social_security_numbers(text: str) -> Iterator[Span]:
    for match in _SSN.finditer(text) if _MANY_DIGITS.search(text) else ():
        yield match.span("bare") if match["bare"] else match.span()


def _phones(text: str) -> Iterator[Span]:
    if not _MANY_DIGITS.search(text):
        return
    spans = [match.span() for match in _PHONES.finditer(text) if _is_phone(match["number"])]
    for match in _SPOKEN_PHONE.finditer(text):
        if 7 <= sum(map(str.isdigit, match["value"])) <= 15:
            spans.append(match.span("value"))
    yield from _apart(spans)


def _is_phone(number: str) -> bool:
    """Long enough, and not a date, a decimal or a range."""
    groups = _DIGITS.findall(number.replace("(0)", ""))
    length = sum(map(len, groups))
    if any(len(group) < 2 for group in groups[2:]) or _DATE.fullmatch(number):
        return False
    if number.startswith("+"):
        return 8 <= length <= 15
    if number.startswith("00"):
        return 10 <= length <= 17
    return length >= 10 or (length == 9 and len(groups) > 1)


_FINDERS = {
    "key": _keys,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
    "ssn": _social_security_numbers,
    "phone": _phones,
}
