//! Header blocks: what one decoder makes of them, and that fields survive encoding.
use edge_proxy::http::hpack::decoder::HpackDecoder;
use edge_proxy::http::hpack::encoder;
use edge_proxy::limits::HPACK_TABLE_BYTES_MAX;

type Field = (Vec<u8>, Vec<u8>);

/// Blocks of one connection, each after a byte with its length.
pub fn hpack(mut data: &[u8]) {
    let (mut one, mut other) = (HpackDecoder::default(), HpackDecoder::default());
    while let Some((&length, rest)) = data.split_first() {
        let (block, rest) = rest.split_at(rest.len().min(usize::from(length)));
        data = rest;
        let (generation, decoded) = (one.generation(), fields(&mut one, block));
        assert_eq!(decoded, fields(&mut other, block), "the same blocks, other fields");
        let Some(decoded) = decoded else { return };
        // A field comes from at least one byte: an entry of the table, or a literal, in which Huffman codes
        // have at least five bits for each byte.
        let bytes: usize = decoded.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(decoded.len() <= block.len(), "{} fields", decoded.len());
        assert!(bytes <= block.len() * HPACK_TABLE_BYTES_MAX, "{bytes} bytes of {}", block.len());
        if one.generation() == generation {
            assert_eq!(fields(&mut one, block).as_ref(), Some(&decoded), "the table is the same");
            fields(&mut other, block);
        }
        let mut encoded = Vec::new();
        for (name, value) in &decoded {
            encoder::field(name, value, &mut encoded);
        }
        assert_eq!(fields(&mut HpackDecoder::default(), &encoded), Some(decoded), "of {encoded:?}");
    }
}

/// The fields of a block; `None` if it is malformed.
fn fields(decoder: &mut HpackDecoder, block: &[u8]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let decoded = decoder.decode(block, |name, value| {
        found.push((name.to_vec(), value.to_vec()));
        true
    });
    decoded.ok().map(|()| found)
}
