#!/usr/bin/env python3
"""Decodes gzip members with Python's zlib and compares them with what they must be.

    gzip_members.py FILE

FILE has pairs of a member and its plain text, each with its length before it (32 bits, little-endian).
"""
import struct
import sys
import zlib


def parts(data):
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def main():
    with open(sys.argv[1], "rb") as file:
        found = parts(file.read())
    count = 0
    for member, plain in zip(found, found, strict=True):
        decoder = zlib.decompressobj(wbits=31)
        decoded = decoder.decompress(member) + decoder.flush()
        if decoded != plain or not decoder.eof or decoder.unused_data or decoder.unconsumed_tail:
            sys.exit(f"member {count} is wrong: {member[:80]!r}")
        count += 1
    print(f"{count} members")


main()
