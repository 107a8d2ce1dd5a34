"""Header blocks of the PyPI package hpack: hpack_stories.py SEED STORIES.

Prints one JSON line for each story, the blocks of one connection in order: each block in hex and its fields. The
fields repeat, so that entries of the dynamic table are used and evicted; its size changes between blocks.
"""

import json
import random
import sys

from hpack import Encoder

seed, stories = (int(argument) for argument in sys.argv[1:])
source = random.Random(seed)
NAMES = ["accept", "cookie", "user-agent", "x-environment-key", "etag", "x", "x-" + "n" * 60, "cache-control"]


def text():
    alphabet = source.choice(["abc-019", "".join(map(chr, range(33, 127))), "".join(map(chr, range(1, 256)))])
    return "".join(source.choice(alphabet) for _ in range(source.choice([0, 1, 5, 30, 200, 1500])))


def main():
    for _ in range(stories):
        encoder = Encoder()
        pool = [(source.choice(NAMES), text()) for _ in range(12)]
        pool += [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":path", "/api/v1/flags/")]
        blocks = []
        for _ in range(source.randrange(1, 25)):
            if source.random() < 0.1:
                encoder.header_table_size = source.choice([0, 64, 512, 4096])
            fields = [source.choice(pool) for _ in range(source.randrange(0, 12))]
            latin = [(name.encode(), value.encode("latin-1"), source.random() < 0.1) for name, value in fields]
            blocks.append([encoder.encode(latin, huffman=source.random() < 0.7).hex(), fields])
        print(json.dumps(blocks))


main()
