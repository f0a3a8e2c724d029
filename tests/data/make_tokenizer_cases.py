#!/usr/bin/env python3
"""Writes tokenizer_cases.jsonl: texts and the ids that an independent implementation gives them.

Usage: make_tokenizer_cases.py MODEL.gguf > tokenizer_cases.jsonl   (needs the Python packages tokenizers 0.23 and regex)

Text goes through Hugging Face's tokenizers, set up as SmolLM2's own tokenizer.json sets it up, with the vocabulary and the
merges of the GGUF file; a second, plainer implementation below must agree with it on every line. That library takes no
invalid UTF-8: bytes are decoded as Python does with errors="replace".
"""
import json
import random
import struct
import sys

import regex
from tokenizers import Tokenizer, models, pre_tokenizers

VALUE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path):
    with open(path, "rb") as file:
        def scalar(form):
            return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]

        def string():
            return file.read(scalar("Q")).decode("utf-8", "surrogateescape")

        def value(kind):
            if kind == 8:
                return string()
            if kind == 9:
                element, count = scalar("I"), scalar("Q")
                return [value(element) for _ in range(count)]
            return scalar(VALUE[kind])

        assert file.read(4) == b"GGUF"
        scalar("I"), scalar("Q")
        return {key: value(scalar("I")) for key in (string() for _ in range(scalar("Q")))}


def byte_characters():
    """GPT-2's printable character of each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


class Plain:
    """Byte-level BPE as plainly as possible."""
    PIECE = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    FRAGMENT = regex.compile(r"\p{N}|[^\p{N}]+")

    def __init__(self, tokens, merges):
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.characters = byte_characters()

    def encode(self, data):
        text = data.decode("utf-8")
        ids = []
        for fragment in self.FRAGMENT.findall(text):
            for piece in self.PIECE.findall(fragment):
                ids += self.encode_piece(piece.encode("utf-8"))
        return ids

    def encode_piece(self, piece):
        symbols = [self.characters[byte] for byte in piece]
        symbols = [symbol for symbol in symbols if symbol in self.ids]
        while len(symbols) > 1:
            rank, at = min((self.ranks.get(pair, 1 << 60), i) for i, pair in enumerate(zip(symbols, symbols[1:])))
            if rank == 1 << 60:
                break
            symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
        return [self.ids[symbol] for symbol in symbols]


TEXTS = """
Hello world|hello  world|Hello, World! 123|I'm you're we've they'll he'd it's don't|I'M YOU'RE IT'S DON'T|'s 's 't'd 'x|''s
The quick brown fox jumps over the lazy dog.|a|A| |  |   |    a|\\t|\\n|\\r\\n|\\n\\n\\n|a\\nb|a \\n b|a\\n\\nb|  \\n  \\n |\\t\\tx|x \\t y
trailing space |trailing spaces   |\\u00a0non-breaking\\u00a0space|\\u2003em\\u2003space|\\u3000全角|\\u200bzero\\u200bwidth|line\\u2028sep\\u2029par
0|1|12|123|1234567890|3.14159|1,000,000|1e-10|0xDEADBEEF|v1.2.3|12ab34|a1b2c3|½ ¼ ¾|² ³ ¹|Ⅳ Ⅻ|①②③|٠١٢٣|०१२३|๐๑๒|１２３|𝟘𝟙𝟚|5 6  7   8|x5 y 6
Привет, мир!|Съешь ещё этих мягких французских булок|Ελληνικά αλφάβητο|Καλημέρα κόσμε|שלום עולם|مرحبا بالعالم|السَّلَامُ عَلَيْكُمْ|سلام دنیا|नमस्ते दुनिया|हिन्दी में लिखा
বাংলা ভাষা|தமிழ் மொழி|తెలుగు|ಕನ್ನಡ|മലയാളം|ਪੰਜਾਬੀ|ગુજરાતી|සිංහල|ภาษาไทยไม่มีเว้นวรรค|ພາສາລາວ|မြန်မာ|ភាសាខ្មែរ|བོད་ཡིག|ქართული|Հայերեն|አማርኛ|ᏣᎳᎩ|ᐃᓄᒃᑎᑐᑦ
你好，世界|中文分词测试。|繁體中文|日本語のテキスト|ひらがなとカタカナ|한국어 텍스트|안녕하세요 세계|ｈａｌｆ　ｗｉｄｔｈ|𠀀𠀁𠮷|Tiếng Việt có dấu|Türkçe İıŞş|Čeština žluťoučký kůň|Ångström fjörð|naïve café résumé|Straße ẞ
e\\u0301 vs é|a\\u0308o\\u0308u\\u0308|Z\\u0351\\u0321a\\u0334l\\u0335g\\u0336o|ﬁ ﬂ ﬀ|Å Å Å|🙂|👍🏽|👨‍👩‍👧‍👦|🇩🇪🇫🇷|❤️ ♥|1️⃣2️⃣|🏴󠁧󠁢󠁥󠁮󠁧󠁿|emoji🙂in🙂text|😀😀😀😀|☃ ☕ ✈|→ ← ⇒ ∀ ∃ ∑ ∫|€ £ ¥ ₿|© ® ™|“quotes” ‘single’ «guillemets»|em—dash en–dash…
def f(x):\\n    return x ** 2 + 1|#include <stdio.h>\\nint main(void) { return 0; }|SELECT * FROM t WHERE a <> 'b';|for (int i = 0; i < n; ++i) a[i] += b[i];|{"key": [1, 2, {"x": null}]}|<div class="a">&nbsp;</div>
https://example.com/path?q=1&r=2#frag|user@example.org|C:\\\\Windows\\\\System32|/usr/local/bin|$HOME/.config|--flag=value -x|a_b_c __init__ snake_case|camelCase PascalCase|MixedCASE123abc|!!!???...|((([[[{{{}}}]]])))|=======|-----|*****|~~~~
<|im_start|>|<|im_end|>|<|endoftext|>|<|im_start|>user\\nhi<|im_end|>|<| im_start |>|<|im_start|<|im_end|>|<repo_name>x<file_sep>|<unknown>
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|                                                                    x|ababababababababababababab|thethethethethe|zzzzzzzzzz|QWxhZGRpbjpvcGVuIHNlc2FtZQ==|the The THE tHe|antidisestablishmentarianism|Donaudampfschifffahrtsgesellschaft
\\u0000|\\u0001\\u0002\\u0003|a\\u0000b|\\u007f|\\u0080\\u0085\\u009f|\\u0085next line|\\ufeffbom|\\ufffd|\\uffff|\\U0010ffff|\\ue000private|a\\u00adb|\\u202eright-to-left|\\u1680ogham|\\u180emongolian|\\u2060word joiner
\\U0001e030's|a\\U0001e4d0's \\U00031350're|x \\U00011f02've|\\u1c89's|\\ua7cb't\\ua7da'll|\\U000105c0'm|\\U00010d4a'd\\U00010d41's|\\U00011f50's\\U00011f51|\\U0001e4f0't|\\U0001ccf3're \\U00016d71's|\\U0002ebf0's=\\U0002ebf1's
"""
BYTES = [b"\xff", b"\x80", b"\xc3", b"\xc3(", b"a\xc3", b"\xe2\x82", b"\xe2\x82\xac\xe2\x82", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80\xf0",
         b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xff",
         b"abc\xffdef", b" \xff ", b"12\xff34", b"\xff\xfe\xfd\xfc", b"caf\xe9", b"na\xefve r\xe9sum\xe9", b"\x93quoted\x94", b"\xa0",
         b"\xe4\xbd\xa0\xe5", b"\xe4\xbd\xa0\xe5\xa5\xbd\xff\xe4\xb8\x96", b"'\xffs", b"\n\xff\n", b"\x00\xff\x00", b"\xc2\x85\xc2"]


def main():
    meta = read_metadata(sys.argv[1])
    tokens, merges = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.merges"]
    library = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)},
                                   [tuple(merge.split(" ")) for merge in merges]))
    library.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    plain = Plain(tokens, merges)

    escape = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    texts = [regex.sub(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})|\\([nrt\\])",
                       lambda m: escape[m[3]] if m[3] else chr(int(m[1] or m[2], 16)), text)
             for line in TEXTS.strip("\n").split("\n") for text in regex.split(r"(?<!<)\|(?!>)", line)]
    generator = random.Random(7)
    alphabets = ["abc  \n", "aé中🙂 1", "\t \n\r ab", "0123 .,-", "שלום אב", "'st re'll d", "한국 ハロー。", "".join(map(chr, range(32, 127)))]
    for _ in range(120):
        alphabet = generator.choice(alphabets)
        texts.append("".join(generator.choice(alphabet) for _ in range(generator.randint(1, 60))))
    for text in texts:
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids == plain.encode(text.encode("utf-8")), (text, ids, plain.encode(text.encode("utf-8")))
        print(json.dumps({"text": text, "ids": ids}, ensure_ascii=True))
    for _ in range(30):
        data = bytes(generator.choice(b"ab \n1\xc3\xa9\xe4\xbd\xa0\xff\x80\xf0\x9f") for _ in range(generator.randint(1, 40)))
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            BYTES.append(data)
    for data in BYTES:
        text = data.decode("utf-8", "replace")
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids == plain.encode(text.encode("utf-8")), (data, ids)
        print(json.dumps({"bytes_hex": data.hex(), "ids": ids}))


main()
