"""Strings that tokenizers are compared on: a dozen scripts, emoji, combining marks, digits, white space, control
tokens' names, and mixtures of all. The same seed gives the same strings."""
import random

SCRIPTS = [
    "the quick brown fox jumps over a lazy dog; its name's Lyra, and they've lived in Seattle since 1969 I'll say",
    "Der Größenwahn überfällt süße Mädchen, während François naïvement déjà vu Ærøskøbing łódź žluťoučký kůň",
    "Съешь же ещё этих мягких французских булок, да выпей чаю в городе Київ",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία στην Αθήνα",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好，我们去北京吧！",
    "いろはにほへとちりぬるを カタカナ 東京タワーは高いです。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்",
    "Բել դղյակի ձախ ժամն օֆ ազգությանը ցպահանջ չճշտած",
    "ვეპხის ტყაოსანი შოთა რუსთაველი",
]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "🏳️‍🌈", "☕", "🤷🏿‍♀️", "1️⃣", "𝄞", "𐍈"]
MARKS = ["e\u0301", "a\u0308\u0323", "\u0915\u094d\u0937", "Z\u0351\u036b\u0343", "\u1ebf", "\u212b", "ﬁ", "Ⅷ", "½"]
SPACES = [" ", "  ", "    ", " " * 17, "\n", "\n\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff",
          "\u180e", "\x85", "\x0b", "\x1c"]
DIGITS = ["0", "7", "42", "1999", "3.14159", "1,000,000", "123456789012345678901234567890", "٣٤٥", "५६", "²³", "1e-9"]
SIGNS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["...", "--", "->", "==", "//", "'s", "'LL", "«»", "„“", "。", "\x00", "\x7f",
                                                        "\u2581", "\u2581\u2581"]
CODE = ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}", "<a href=\"#\">x</a>",
        "SELECT * FROM t WHERE a<>'b';", "C:\\Users\\me", "https://example.org/?q=1&r=%20"]
CONTROL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<0x0A>", "[INST]", "<|user|>"]


def part(rng):
    kind = rng.random()
    if kind < 0.55:
        words = rng.choice(SCRIPTS)
        begin = rng.randrange(len(words))
        return words[begin:begin + rng.randint(1, 40)]
    for limit, pool in ((0.62, EMOJI), (0.70, MARKS), (0.80, SPACES), (0.88, DIGITS), (0.95, SIGNS), (0.97, CODE)):
        if kind < limit:
            return rng.choice(pool)
    if kind < 0.985:
        return rng.choice(CONTROL)
    while True:  # any character at all
        code = rng.randrange(0x110000)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def strings(count, seed):
    rng = random.Random(seed)
    out = []
    for i in range(count):
        text = "".join(part(rng) for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 13))))
        if rng.random() < 0.1:
            text = rng.choice((str.upper, str.title, str.swapcase))(text)
        if rng.random() < 0.05:
            text = rng.choice(SPACES[:4]) + text + rng.choice(SPACES[:4])
        if i % 500 == 0:
            text = text * 40
        out.append(text)
    return out
