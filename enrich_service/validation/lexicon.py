"""Words and patterns that identify bad answers.

Patterns ignore case and are written in lower case: see `search`.
"""

import re
from functools import lru_cache

# This pattern and the next two ignore case and are written in lower case: see `search`.
ERROR_TEXT = re.compile(
    r"""
      ^[^\w\n]*(?:
          (?:\w*error|exception)\b\s*(?:[:!.\d(]|$)   # "Error: …", "ValueError(…", "Error 500"
        | time(?:d\s+|-?)out\W*$
        | [45]\d\d\b.{0,40}\b(?:error|gateway|unavailable|forbidden|not\s+found|requests))
    | ^[ \t]*file\s+".+",\s+line\s+\d+
    | \b(?:
          (?:internal|network|server|connection|parse|syntax|unknown|unexpected)\s+
          (?:server\s+)?error\b
        | error\s+(?:code|message|occurred|while|generating|communicating)
        | (?:http|status)(?:/[\d.]+)?(?:\s+(?:status|code|error))*\s*[:=]?\s*[45]\d\d\b
        | too\s+many\s+requests\b | rate[\s-]?limit | at\s+capacity\b
        | quota\s+(?:was\s+|is\s+|has\s+been\s+)?exceeded | exceeded\s+your\s+(?:\w+\s+)?quota\b
        | bad\s+gateway\b | service\s+(?:is\s+)?(?:temporarily\s+)?unavailable\b
        | access\s+denied\b
        | (?:request|gateway|connection|read|session|operation)\s+(?:has\s+)?time(?:d\s+|-?)out\b
        | session\s+(?:has\s+|is\s+)?expired\b | (?:log|sign)\s*in\s+(?:again|to\s+continue)\b
        | connection\s+(?:was\s+)?(?:refused|reset|aborted|closed)\b
        | traceback\s+\(most | stack\s+trace\b
        | (?:unusable|invalid|empty|no)\s+response\b | something\s+went\s+wrong\b
        | please\s+try\s+again\b | try\s+again\s+later\b | api[\s_-]?key\b
        | cloudflare\b | enable\s+javascript\b
        | verify\s+(?:that\s+)?you\s+are\s+(?:a\s+)?human\b)
    | <!doctype\s+html | <html\b | <\?xml
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
REFUSAL = re.compile(
    r"""
      \b(?:i['’]?\s?a?m|we\s+are|we['’]re)\s+(?:\w+\s+)?
      (?:sorry|afraid|unable|not\s+(?:able|sure|familiar|aware|allowed))\b
    | \bsorry,?\s+(?:but|i)\b | \b(?:my\s+)?apologies\b | \bi\s+apologi[sz]e\b
    | \bas\s+an?\s+(?:\w+\s+)?
      (?:ai\b|artificial\s+intelligence|(?:large\s+)?language\s+model|assistant\b|chatbot)
    | \b(?:i|we)\s+(?:\w+\s+)?(?:
          can\s?not | can['’]?t | could\s?n[o'’]t | could\s+not | won['’]?t | will\s+not
        | must\s+decline | do(?:n['’]t|\s+not)\s+(?:have|know))\b
    | \b(?:can\s?not|can['’]?t|unable\s+to|not\s+(?:possible|able)\s+to)\s+(?:be\s+)?
      (?:provide|describe|generate|assist|answer|fulfil|comply|give|offer|help)
    | \b(?:is|are)\s+too\s+(?:broad|vague|general|ambiguous)\b
    | \b(?:is|are)\s+not\s+an?\s+(?:(?:
          specific | particular | single | real | known | recogni[sz]ed | actual | physical
        | visual | valid | tangible)\s+)+\w+
    | \b(?:does|do)\s*(?:not|n['’]t)\s+have\s+(?:an?|any)\s+
      (?:(?:specific|particular|single|fixed|set|physical|visual|definite|distinct)\s+)*
      (?:shape|appearance|form|look)\b
    | \bthere\s+(?:is|are)\s+no\s+(?:such|specific|known|widely)\b
    | \b(?:not\s+enough|insufficient|more)\s+(?:information|context|details?)\s+
      (?:is|are|about|to|on|needed|required)\b
    | \b(?:violates?|against)\s+(?:\w+\s+){0,3}(?:polic(?:y|ies)|guidelines)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
CHATTER = re.compile(
    r"""
      \b(?:assuming|if|since)\s+you\s*(?:['’]re|\s+are|\s+mean|\s+meant|\s+refer)
    | \byou(?:['’]re|\s+are)\s+(?:referring|asking|looking|talking)
    | \b(?:could|can|would)\s+you\s+(?:please\s+)?(?:provide|clarify|specify|give|tell)
    | \bplease\s+(?:provide|clarify|specify|note|let\s+me|feel\s+free)
    | \blet\s+me\s+know\b | \bi\s+hope\s+(?:this|that)\b | \bis\s+there\s+anything\s+else\b
    | ^[^\w\n]*(?:sure|certainly|of\s+course|absolutely|okay|great\s+question)\s*[,!.:]
    | ^[^\w\n]*here(?:['’]s|\s+is|\s+are)\s+(?:an?|the|my|your|one|some)\s+(?:\w+\s+){0,4}
      (?:descriptions?|sentences?|captions?|answers?|json|examples?)\b
    | \byour\s+(?:question|request|prompt|query)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
FILLER = re.compile(
    r"(?:n a|na|nil|none|null|nan|undefined|unknown|not (?:applicable|available|specified|known)|"
    r"tb[ad]|todo|fixme|test|foo(?: bar)?|x+|string|text|your text here|"
    r"(?:no |the |a |one |insert |your )*(?:descriptions?|sentences?|captions?|answers?)(?: here)?|"
    r"to be (?:determined|done|added)|lorem ipsum.*|(?:description )?(?:coming soon|goes here))"
)
TEMPLATE = re.compile(
    r"\{\{.{0,80}?\}\}|\{\w+\}|\[(?:insert|your|label|name|object)\b[^]]{0,80}\]|<\w+>", re.I
)
# Words for visible properties; one is enough. First stems ("strip" for stripes, striped), then
# whole words, since "ear" must not match "early", nor "tan" "tank".
VISIBLE = re.compile(
    r"\b(?:"
    r"yellow|orange|purple|brown|black|white|green|colou?r|iridescen|metal|transparent|translucent|"
    r"opaque|strip|spott|speckl|mottl|pattern|marking|gloss|shin[ey]|elongat|round|circ|rectang|"
    r"triang|spher|cylind|conic|cub|curv|taper|hollow|dome|spiral|coil|twist|fold|shape|hexagon|"
    r"crescent|angular|pointed|hook|forked|textur|wrinkl|ridg|groov|bump|layer|wooden|feather|"
    r"wool|plum|flower|bloss|petal|leaf|leaves|branch|bristl|whisker|tentacle|vertical|horizontal|"
    r"consist|compos|surround|resembl|decorat|adorn|stack|attach"
    r")\w*"
    r"|\b(?:made|built|formed)(?: up)? (?:of|from|out)\b"
    r"|\b(?:"
    r"red|gr[ae]y|blue|pink|tan|gold|golden|silver|beige|cream|crimson|scarlet|violet|maroon|dark|"
    r"bright|pale|hue|shade|tint|spot|clear|plain|large|small|big|tiny|huge|tall|short|long|wide|"
    r"broad|narrow|thick|thin|slender|slim|stout|plump|stocky|bulky|compact|massive|miniature|"
    r"sized|open|square|oval|oblong|cone|flat|straight|bent|arch|arched|boxy|smooth|rough|soft|hard|"
    r"fluffy|fuzzy|furry|hairy|shaggy|silky|wiry|scaly|spiny|spiky|prickly|sticky|slimy|crisp|"
    r"crispy|creamy|chunky|woven|mesh|knit|wood|steel|iron|brass|glass|plastic|paper|leather|"
    r"fabric|cloth|cotton|stone|brick|concrete|ceramic|rubber|clay|straw|fur|hair|skin|shell|scale|"
    r"head|face|eye|ear|nose|snout|beak|bill|mouth|tooth|teeth|tusk|horn|antler|crest|neck|body|"
    r"bodies|bodied|wing|tail|fin|leg|arm|hand|feet|foot|paw|claw|hoof|hooves|coat|belly|breast|"
    r"stem|root|trunk|bark|seed|spine|thorn|wheel|handle|blade|lid|base|frame|button|screen|door|"
    r"window|roof|wall|tower|pillar|strap|sleeve|collar|pipe|tube|spout|rim|edge|corner|surface"
    r")s?\b"
)
DANGLING = re.compile(
    r"(?:[,;:(\-–—/&]|\b(?:and|or|but|with|without|the|an?|of|to|its|their|which|that|is|are|has|have|"
    r"as|by|for|from|in|into|on|often|usually|typically|very))\W*$",
    re.IGNORECASE,
)
ENDED = re.compile(r"[.!?。！？।؟…]['\"”’»)\]]*\s*$")


def search(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """`pattern.search(text)` for a lower-case pattern that ignores case; `text` in any case."""
    if text.isascii():  # most are; ignoring case takes twice as long
        return _case_sensitive(pattern).search(text.lower())
    return pattern.search(text)


@lru_cache
def _case_sensitive(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(pattern.pattern, pattern.flags & ~re.IGNORECASE)


PLURALS = {
    "geese": "goose",
    "oxen": "ox",
    "mice": "mouse",
    "feet": "foot",
    "teeth": "tooth",
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
}
