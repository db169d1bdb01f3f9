"""What prompt injection looks like: phrases and shapes, by the name of their rule.

A phrase is read in lower case, without accents and markup, with one space between words. `{name}` is a word of the
vocabulary, `...` is up to 40 characters of the same sentence, the rest is a regular expression.
"""

from __future__ import annotations

# Of these rules and of those in touchstone/pii.py: the next number with any change scans all documents again.
SCAN_RULES_VERSION = "2"

VOCABULARY = {
    "dismiss": r"(ignor(e|ing)|disregard(ing)?|forget(ting)?|neglect|overrid(e|ing)|bypass(ing)?|set aside"
    r"|pay no (attention|heed) to|{not} (follow|obey|comply with|adhere to)(ing)?)",
    "not": r"(do not|don ?'?t|never|must not|stop|no longer)",
    "prior": r"(previous|prior|above|earlier|preceding|foregoing|original|initial|system|your|existing)",
    "orders": r"(instructions?|directives?|prompts?|rules|guidelines?|guidance|programming)",
    "model": r"(ais?|ai (models?|assistants?|agents?|systems?|tools?)|llms?|(large )?language models?|chat ?bots?"
    r"|(chat)?gpt)",
    "reading": r"(read|process|summari[sz]|pars|index|ingest|view|answer)(e|es|ing)?",
    "act": r"(act|behave|respond|answer|reply|pretend|speak|obey|output|write|say)",
    "show": r"(reveal|print|repeat|output|show|display|tell|leak|expose|disclose|recite|copy|write|quote|return|list)",
    "freely": r"(unrestricted|uncensored|unfiltered|jailbroken|(with)?(no|out) (any )?(\w+ )?(\w+ )?"
    r"(restrictions|filters?|rules|guidelines|limits|polic(y|ies)))",
    "limits": r"(filters?|guardrails|safeguards|restrictions|guidelines|polic(y|ies)|protocols?|checks|constraints"
    r"|instructions|measures)",
    "secret": r"(initial|original|hidden|secret|internal|confidential)",
    "run": r"(call|invoke|use|run|trigger|execute)",
    "tool": r"(tool|function|command|script|plugin|code|action|instruction)s?",
    "theirs": r"((whole|entire|full|this|our|the) (conversation|chat|dialogue)|(chat|conversation) (history|log)"
    r"|user ?'?s? (\w+ )?(\w+ )?(keys?|passwords?|credentials|card|data|messages?|secrets?|number)"
    r"|all (the |user |your |my |of the )*(\w+ )?(files|data|contacts|keys|passwords|credentials|documents|messages)"
    r"|system prompt)",
    "away": r"(https?|www|\S+@\S+|to (me|us)|to an? (external|remote|outside) \w+)",
    "take": r"(send|forward|post|upload|transmit|e ?mail|exfiltrate|append|leak|submit)",
}

PHRASES: dict[str, tuple[str, ...]] = {
    "override": (
        "{dismiss} ... {prior} ... {orders}",
        "{dismiss} (all|any|every|the|of|these|those) ... (instructions|directives|prompts)",
        "(ignor(e|ing)|disregard|forget) ((all|everything|anything|what|what is) )*(the )?(text )?(above|before)",
        "(ignor(e|ing)|disregard|forget) (all|everything|anything|whatever|what) ... (told|before|previously|prior)",
        "(ignor(e|ing)|disregard|forget) everything you know ... {orders}",
        r"(ignor(e|ing)|disregard|abandon|forget) (the |your |this |previous |current |original )+(\w+ )?(\w+ )?task",
        "(system|admin|agent|priority|safety|policy|instruction) override ?(:|active|enabled)",
        "(ignore|disregard) the rest of (this|the) (data|text|document|page|file)",
    ),
    "revoked_instructions": (
        "{prior} {orders} ... (no longer appl(y|ies)|cancell?ed|void|revoked|superseded|overridden|replaced)",
        "{orders} (that )?you (were|have been|received|got) ... (no longer|cancell?ed|void|revoked|superseded)",
        "(following|these|my|new|below) {orders} (take precedence|override|replace|supersede)",
    ),
    "new_task": (
        "your (new|real|actual|only|true|one) (and only )?(task|goal|job|objective|mission|role|instructions?) "
        "(is|are|will be|now)",
        "new (system |user )?(instructions?|directives?|prompt) ?:",
        "new (system|user) (task|request) ?:",
        "instead of (answering|responding to|summari[sz]ing) (the|this|that|any|their) ... {act}",
    ),
    "persona": (
        r"you( are|'re) (now )?(dan|\w+gpt)",
        "do anything now",
        "(no longer|not) bound by ... (rules|guidelines|polic(y|ies)|restrictions|instructions)",
        "you are (now )?an? ... (uncensored|unrestricted|unfiltered|jailbroken|evil)",
        "you( are|'re) now an? ... (ai|assistant|bot|chatbot|agent|language model|hacker)",
        r"you( are|'re) now (operating )?in (an? )?(\w+ )?(unrestricted|god|jailbreak|sudo|dan|root) (\w+ )?mode",
        "from (now|here) on ,? ?(you )?(are an?|will|must|shall|should|can|only|always)? ?{act}",
        "(act|behave|respond|answer|pretend|simulate|role ?play) ... {freely}",
        "(act|behave|respond|answer|pretend|simulate|role ?play) ... free (of|from) (all|any|every)",
        "(enter|enable|activate|switch to|in) (developer|god|jailbreak|debug|dan) mode ... "
        "(filters?|polic(y|ies)|restrictions?|answer|requests|model)",
        r"(enter|enable|activate|switch to|in) (an? )?unrestricted (\w+ )?mode",
        "(pretend|act as|you are) ... (never|not|don ?'?t) break character",
    ),
    "prompt_leak": (
        r"{show} ... (your|the|its|complete|full) (\w+ )?system (prompt|message|instructions)",
        r"{show} ... (your|the|its|all|any) (\w+ )?{secret} (prompt|instructions|rules)",
        "{show} ... instructions (that )?you (were|are|have been) given",
        "(instructions?|directives?|guidelines?) ... (given|provided) to you (in|at|so far|before|above)",
        r"your (\w+ )?(system prompt|instructions) ... (output|print|reveal|display|show) (it|them)",
        "{show} your (full|entire|complete|exact) (configuration|prompt|instructions)",
        r"{show} ... your (\w+ )?prompt ... (verbatim|word for word)",
        r"(verbatim|word for word|exact|full) (copy |text |contents? )?(of )?your (\w+ )?(prompt|instructions)",
        "(repeat|print|output|copy|recite) (everything|all|the (text|words|content|prompt)) ... above",
        r"what (is|are|was|were) your (\w+ )?(system|{secret}) (\w+ )?(prompt|instructions|rules)",
    ),
    "addressed_to_model": (
        "(note|message|attention|attn|instructions?|notice|warning|dear|hey)[ :,]+(to |for )?(any |all |the |every )*"
        r"{model} ?([:,!]|(\w+ )?(that |who )?(is |are )?{reading})",
        "if you are an? {model} ?(,|you|then|and you|assistant|agent|{reading})",
        "{model} (that are |that is |who are )?{reading} (this|the (page|document|text))",
        "ai( assistant| agent| model)?[ ,:]+(please )?(stop|ignore|disregard|output|forget|execute|you must)",
    ),
    "concealment": (
        "({not}|without) (ever )?(tell|inform|notify|alert|let)(t?ing)? "
        "the user (know )?(about |of |that )?(this|these|you (read|were|saw|got|have been))",
        "(follow|do|perform|execute|carry out) (this|these|the following|it) ... "
        "without (inform|tell|notify|alert)ing the user",
        "(send|upload|forward|delete|transfer|copy|share|install) ... without (inform|tell|notify|alert)ing the user",
        "{not} (mention|reveal|disclose) (this|these) ... to the user",
        "user (must|should|may|can) ?(not|never) (know|find out|notice|learn|be told|become aware|suspect)",
    ),
    "exfiltration": (
        "{take} ... {theirs} ... {away}",
        "(encode|encrypt|compress) ... {theirs} ... (append|add|put|embed) ... (url|link|https?|image|address)",
    ),
    "tool_bait": (
        "{run} ... {tool} ... without (asking|confirm|confirmation|approval|permission|telling|informing)",
        "(immediately|before (you answer|answering|responding)) ?,? ?{run} ... {tool}",
        r"{run} (this|these|the following) (\w+ )?{tool} (now|immediately|without)",
        r"use the (\w+ )(\w+ )?tool to (send|forward|e ?mail|post|upload|delete|transfer|wire) ... "
        "(passwords?|credentials|secrets?|api keys?|money|funds)",
    ),
    "safety_bypass": (
        "(bypass|disable|circumvent|evade|turn off|switch off|deactivate) (all |any |the |your |every |its )*"
        "(content |safety |ethical |moral )+{limits}",
        "(ignore|disregard) (all |any |your |every |previous |prior |agent |the )*(safety|security|ethical) {limits}",
        "(bypass|circumvent|evade) (the |all |any )*rules (set|given|imposed) by",
    ),
    "override_other_language": (
        "(ignoriere?n?|vergiss|vergesst|missachten?) ... (anweisungen|instruktionen|regeln|befehle|vorgaben)",
        "(ignor[ae]|ignorez|olvida|olvide|oubliez?|dimentica|ignorate|esqueca|negeer|vergeet) ... "
        "(instrucciones|instrucoes|instructions|consignes|istruzioni|ordenes|instructies|reglas|regles)",
        "ne (tiens|tenez) pas compte ... (instructions|consignes|regles|directives)",
        r"(игнорируи\w*|забудь\w*|не обращаи\w* внимания) ... (инструкци\w*|указани\w*|правил\w*|команд\w*)",
    ),
}

# A rule is only tried where one of its words occurs, which makes the scan several times as fast.
NEEDED: dict[str, str] = {
    "override": "ignor|disregard|forget|neglect|overrid|bypass|set aside|pay no|abandon|not follow|'t follow|t follow"
    "|never follow|stop follow|longer follow|obey|comply|adher",
    "revoked_instructions": "cancel|void|revoked|supersede|overrid|replace|no longer|precedence",
    "new_task": "your new|your real|your actual|your only|your true|your one|new instruction|new prompt"
    "|new directive|new system|new user|instead of",
    "persona": "you are|you're|anything now|bound by|now on|here on|unrestricted|uncensored|unfiltered|jailbroken"
    "|restriction|filter|rules|guideline|limit|polic|free of|free from| mode|break character",
    "prompt_leak": "prompt|instruction|directive|guideline|system message|secret|hidden|above|your ",
    "addressed_to_model": " ai|llm|language model|chatbot|chat bot|gpt",
    "concealment": "user",
    "exfiltration": "send|forward|post|upload|transmit|mail|filtrate|append|leak|submit|encode|encrypt|compress",
    "tool_bait": "without|immediately|before |now|tool to",
    "safety_bypass": "bypass|disable|circumvent|evade|turn off|switch off|deactivate|ignore|disregard",
    "override_other_language": "ignor|vergiss|vergesst|missacht|olvid|oubli|dimentic|esqueca|negeer|vergeet"
    "|pas compte|забудь|обращаи|игнор",
}

# Languages that put no spaces between words, and any language whose letters were pulled apart.
RUN_TOGETHER = {
    "override": r"(?:ignore|disregard|forget|override)(?:all)?(?:of)?(?:the|your|any|my)?"
    r"(?:previous|prior|above|earlier|preceding|original)(?:instruction|prompt|rule|directive|guideline|message)",
    "override_other_language": r"(?:忽略|无视|無視|忘记|忘掉)\w{0,12}?(?:指令|指示|提示|规则|命令)"
    r"|(?:指示|命令|指令)\w{0,6}?(?:無視|忘れ)",
}

_PLACE = r"(?:\{\{?|\[|<|\$\{|%7b)[a-z_ .']{2,60}(?:\}|\]|>|%7d)"
_SENT = "(?:q|d|data|prompt|query|secret|text|content|conversation|history|payload|leak)="
_TAKEN = rf"[?&](?:{_SENT}|\w{{1,30}}={_PLACE})"  # a name that takes data, or a place for it
_HIDDEN = r"display ?: ?none|visibility ?: ?hidden|font-size ?: ?0|opacity ?: ?0\b"

# These read the text with its lines and marks, in lower case; a shape needs one of the words before it.
SHAPES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "role_marker",
        ("<|",),
        r"<\|(?:im_start|im_end|system|user|assistant|start_header_id|end_header_id|eot_id|begin_of_text)\|>",
    ),
    (
        "role_marker",
        ("<system>",),
        r"<system>[^<]{0,80}?\b(?:you (?:are|must|will|should)|override|ignore|disregard|previous instructions)\b",
    ),
    ("role_marker", ("[inst]", "[/inst]", "<<sys>>"), r"\[/?inst\]|<</?sys>>"),
    (
        "role_marker",
        ("system",),
        r"^[ \t>*#\[(]*system(?: prompt| message| override| note)?[\])*]*[ \t]*:\s{0,3}[^\n]{0,80}"
        r"\b(?:you|assistant|ignore|user is|approve|grant|always|never|must|policy|override|instructions?)\b",
    ),
    (
        "role_marker",
        ("</",),
        r"</(?:context|documents?|data|system|input|user_input)>\s{0,9}(?:system|user|human|assistant|new)\b[^\n]{0,20}:",
    ),
    (
        "role_marker",
        ("end of",),
        r"^[^\w\n]*end of (?:the )?(?:document|context|input|data|text|page|file)s?\b[^\w]{0,40}"
        r"(?:new|begin|start|system|user|real|actual)\b",
    ),
    (
        "forged_turn",
        ("human:", "user:"),
        r"^(?:human|user):[^\n]{0,400}\n\s{0,9}(?:assistant|ai|bot):[ \t]*"
        r"(?:certainly|sure|of course|understood|ok|yes|absolutely)\b",
    ),
    ("exfiltration_link", ("![",), rf"!\[[^\]\n]{{0,200}}\]\(\s?https?://[^)\s]{{1,300}}?{_TAKEN}"),
    ("exfiltration_link", ("](",), rf"\[[^\]\n]{{0,200}}\]\(\s?https?://[^)\s]{{1,300}}?[?&]\w{{1,30}}={_PLACE}"),
    ("exfiltration_link", ("<img",), rf"<img\b[^>]{{0,200}}?\bsrc ?= ?[\"']?https?://[^>\s]{{1,300}}?{_TAKEN}"),
    (
        "tool_call_markup",
        ("<tool_call", "<function_call", "<invoke", "<function="),
        r"<tool_calls?>\s{0,9}[{\[<]|<function_calls?>\s{0,9}<invoke|<invoke name=|<function=\w",
    ),
    (
        "hidden_instruction",
        ("<!--", "display", "visibility", "font-size", "opacity"),
        rf"(?:<!--|<[a-z]{{1,12}}\b[^>]{{0,200}}?(?:{_HIDDEN})[^>]{{0,100}}>)(?:(?!-->|</|<!)[\s\S]){{0,400}}?"
        r"\b(?:you (?:must|should|are|will)|assistant|language model|llm|chatbot|tell the (?:user|reader)"
        r"|when summari[sz]ing|(?:ignore|disregard) (?:all|any|the|previous)"
        r"|(?:answer|respond|reply) (?:with|that|only))\b",
    ),
)
