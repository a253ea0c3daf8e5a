//! Which partition a key belongs to: Java's murmur2, computed here and never left to a client.
//!
//! The hashed text is `business|identity` as both stand in the key, so that all that concerns one recipient is in one
//! partition, in order. Source of the algorithm: Apache Kafka `Utils.murmur2` and `BuiltInPartitioner`.

/// Java's murmur2 as Kafka's default partitioner uses it.
pub fn murmur2(data: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

/// The partition of a text among `partitions` (at least one), as Java's client would choose it for that key.
pub fn partition_for(text: &[u8], partitions: u32) -> u32 {
    (murmur2(text) & 0x7fff_ffff) as u32 % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_gives_the_published_vectors_of_kafkas_own_test() {
        // org.apache.kafka.common.utils.UtilsTest#testMurmur2
        for (text, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn the_sign_never_reaches_the_partition() {
        assert_eq!(partition_for(b"21", 8), ((-973_932_308_i32) & 0x7fff_ffff) as u32 % 8);
        assert_eq!(partition_for(b"21", 1), 0);
    }
}
