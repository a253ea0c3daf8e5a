//! Kafka's protocol by hand, for what client libraries refuse: header names that are not UTF-8, written and read.
//! One partition, one connection, uncompressed batches, the node at the bootstrap address as leader: no more.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// A record with raw header names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRecord {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub timestamp: i64,
}

/// Produces one record; its offset.
pub fn produce(bootstrap: &str, topic: &str, partition: i32, record: &RawRecord) -> i64 {
    let batch = encode_batch(record);
    let mut body = Vec::new();
    body.extend((-1i16).to_be_bytes()); // no transactional id
    body.extend((-1i16).to_be_bytes()); // acks: all
    body.extend(30_000i32.to_be_bytes());
    body.extend(1i32.to_be_bytes());
    put_string(&mut body, topic);
    body.extend(1i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend(length(batch.len()).to_be_bytes());
    body.extend(batch);
    let answer = request(bootstrap, 0, 3, &body);
    let mut cursor = Cursor(&answer);
    assert_eq!((cursor.i32(), cursor.string().as_str(), cursor.i32()), (1, topic, 1), "a produce response");
    let (found, error, offset) = (cursor.i32(), cursor.i16(), cursor.i64());
    assert_eq!((found, error), (partition, 0), "partition and error code of a produce response");
    offset
}

/// All records of a partition from its first offset on, with their offsets; aborted ones and those of open
/// transactions too. Their topic must store batches uncompressed (`compression.type=uncompressed`).
pub fn read(bootstrap: &str, topic: &str, partition: i32) -> Vec<(i64, RawRecord)> {
    let mut records = Vec::new();
    let mut offset = 0i64;
    loop {
        let mut body = Vec::new();
        body.extend((-1i32).to_be_bytes()); // a consumer
        body.extend(100i32.to_be_bytes()); // longest wait
        body.extend(1i32.to_be_bytes());
        body.extend((64i32 << 20).to_be_bytes());
        body.push(0); // read_uncommitted
        body.extend(1i32.to_be_bytes());
        put_string(&mut body, topic);
        body.extend(1i32.to_be_bytes());
        body.extend(partition.to_be_bytes());
        body.extend(offset.to_be_bytes());
        body.extend((64i32 << 20).to_be_bytes());
        let answer = request(bootstrap, 1, 4, &body);
        let mut cursor = Cursor(&answer);
        let _throttle = cursor.i32();
        assert_eq!((cursor.i32(), cursor.string().as_str(), cursor.i32()), (1, topic, 1), "a fetch response");
        assert_eq!((cursor.i32(), cursor.i16()), (partition, 0), "partition and error code of a fetch response");
        let (_high_watermark, _last_stable) = (cursor.i64(), cursor.i64());
        for _ in 0..cursor.i32() {
            let _aborted = (cursor.i64(), cursor.i64());
        }
        let size = cursor.i32();
        let mut batches = Cursor(cursor.take(size));
        if batches.0.is_empty() {
            return records;
        }
        while let Some(next) = decode_batch(&mut batches, &mut records) {
            offset = next;
        }
    }
}

fn request(bootstrap: &str, api: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(api.to_be_bytes());
    message.extend(version.to_be_bytes());
    message.extend(1i32.to_be_bytes()); // correlation id
    put_string(&mut message, "stopgate-tests");
    message.extend(body);
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(bootstrap)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(&length(message.len()).to_be_bytes())?;
        stream.write_all(&message)?;
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(size)).unwrap_or_default()];
        stream.read_exact(&mut answer)?;
        Ok(answer.split_off(4))
    };
    exchange().unwrap_or_else(|error| panic!("the broker did not answer request {api}: {error}"))
}

fn encode_batch(record: &RawRecord) -> Vec<u8> {
    let mut inner = vec![0u8]; // attributes
    put_varint(&mut inner, 0); // timestamp delta
    put_varint(&mut inner, 0); // offset delta
    put_bytes(&mut inner, record.key.as_deref());
    put_bytes(&mut inner, record.value.as_deref());
    put_varint(&mut inner, length(record.headers.len()).into());
    for (name, value) in &record.headers {
        put_bytes(&mut inner, Some(name));
        put_bytes(&mut inner, value.as_deref());
    }
    let mut checked = Vec::new();
    checked.extend(0i16.to_be_bytes()); // attributes: uncompressed, create time, no transaction
    checked.extend(0i32.to_be_bytes()); // last offset delta
    checked.extend(record.timestamp.to_be_bytes());
    checked.extend(record.timestamp.to_be_bytes());
    checked.extend((-1i64).to_be_bytes()); // producer id
    checked.extend((-1i16).to_be_bytes()); // producer epoch
    checked.extend((-1i32).to_be_bytes()); // first sequence
    checked.extend(1i32.to_be_bytes());
    put_varint(&mut checked, length(inner.len()).into());
    checked.extend(inner);
    let mut batch = Vec::new();
    batch.extend(0i64.to_be_bytes()); // first offset
    batch.extend(length(checked.len() + 9).to_be_bytes());
    batch.extend((-1i32).to_be_bytes()); // leader epoch
    batch.push(2); // magic
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    batch
}

/// Reads one batch; the offset behind it. `None` at the end, or where only a part of a batch is left.
fn decode_batch(batches: &mut Cursor<'_>, records: &mut Vec<(i64, RawRecord)>) -> Option<i64> {
    if batches.0.len() < 12 {
        return None;
    }
    let (first, size) = (batches.i64(), batches.i32());
    if batches.0.len() < usize::try_from(size).ok()? {
        return None;
    }
    let mut batch = Cursor(batches.take(size));
    let _epoch = batch.i32();
    assert_eq!(batch.take(1), [2], "magic of a record batch");
    let _crc = batch.i32();
    let attributes = batch.i16();
    assert_eq!(attributes & 7, 0, "a compressed batch: set compression.type=uncompressed on the topic");
    let last = batch.i32();
    let timestamp = batch.i64();
    let _newest = batch.i64();
    let _producer = (batch.i64(), batch.i16(), batch.i32());
    let control = attributes & 0x20 != 0;
    for _ in 0..batch.i32() {
        let size = batch.varint();
        let mut inner = Cursor(batch.take(i32::try_from(size).unwrap_or_default()));
        let _attributes = inner.take(1);
        let timestamp = timestamp + inner.varint();
        let offset = first + inner.varint();
        let (key, value) = (inner.bytes(), inner.bytes());
        let headers = (0..inner.varint()).map(|_| (inner.bytes().unwrap_or_default(), inner.bytes())).collect();
        if !control {
            records.push((offset, RawRecord { key, value, headers, timestamp }));
        }
    }
    Some(first + i64::from(last) + 1)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: i32) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(usize::try_from(count).unwrap_or_default());
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_first_chunk().unwrap_or_else(|| panic!("a response that ends early"));
        self.0 = rest;
        *taken
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.array())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.array())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.array())
    }

    fn string(&mut self) -> String {
        let size = self.i16();
        String::from_utf8_lossy(self.take(size.into())).into_owned()
    }

    /// A zig-zag number of variable length.
    fn varint(&mut self) -> i64 {
        let mut number = 0u64;
        for shift in (0..).step_by(7) {
            let [byte] = self.array();
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let size = i32::try_from(self.varint()).unwrap_or_default();
        (size >= 0).then(|| self.take(size).to_vec())
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend(i16::try_from(text.len()).unwrap_or_default().to_be_bytes());
    out.extend(text.as_bytes());
}

fn put_varint(out: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while left >= 0x80 {
        out.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |bytes| length(bytes.len()).into()));
    out.extend(bytes.unwrap_or_default());
}

fn length(count: usize) -> i32 {
    i32::try_from(count).unwrap_or_else(|_| panic!("{count} bytes do not fit a request"))
}

/// Castagnoli's checksum, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1))))
}
