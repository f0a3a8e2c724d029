#!/usr/bin/env python3
"""Writes engine/unicode_table.c: ranges of letters, numbers and white space.

Usage: tools/gen_unicode.py > engine/unicode_table.c   (needs the Python package unicodedata2, version 16.0.0)

The version of Unicode is that of the library which the tokenizer is compared with (tokenizers 0.23). It has two: its
pattern knows Unicode 16, and what it takes for a digit, Unicode 17. They differ in 13 characters.
"""
import sys

import unicodedata2 as unicodedata

# The property White_Space (PropList.txt), which unicodedata does not have; unchanged since Unicode 6.3.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def class_of(code):
    if code in SPACES:
        return "UNICODE_SPACE"
    category = unicodedata.category(chr(code))
    return {"L": "UNICODE_LETTER", "N": "UNICODE_NUMBER"}.get(category[0])


ranges = []
for code in range(sys.maxunicode + 1):
    kind = class_of(code)
    if kind is None:
        continue
    if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == kind:
        ranges[-1][1] = code
    else:
        ranges.append([code, code, kind])

print(f"""/* Made by tools/gen_unicode.py from Unicode {unicodedata.unidata_version}: every character that is a letter (L*), a number (N*) or
 * white space, as ranges in order. */
#include "engine/unicode.h"

const struct unicode_range unicode_ranges[] = {{""")
for first, last, kind in ranges:
    print(f"    {{0x{first:x}, 0x{last:x}, {kind}}},")
print(f"""}};

const uint32_t unicode_range_count = {len(ranges)};""")
