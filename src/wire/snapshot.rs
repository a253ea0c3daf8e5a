//! The snapshot file: its bytes, as `proto/stopgate/v1/snapshot.proto` describes them.
//!
//! Written and read one shard at a time, so that a file of gigabytes takes the memory of one of 4096 parts beside the set.
//! Each frame has a checksum of its own and the tail comes last: a file that ends early, or of which a bit has turned, is
//! refused. Nothing of it is believed beyond that: see [`crate::domain::suppression::image`].
//!
//! Absent: files and their names, and whether a snapshot is that of the topic as it stands.

use crate::domain::consent::Position;
use crate::domain::suppression::image::{Assembly, CELLS, Misfit, NoteRow, ShardImage, SideTables, WholeRow};
use crate::domain::suppression::{PrintKey, SHARDS};
use crate::domain::view::{ConsentView, Seen};
use crate::wire::proto;
use prost::Message;
use std::io::{self, ErrorKind, Read, Write};

/// What every snapshot of this format begins with. Other versions have another number.
const MAGIC: &[u8] = b"stopgate snapshot 2\n";
/// A shard of a hundred billion entries: what is longer is no frame.
const MOST_FRAME_BYTES: usize = 1 << 30;
/// Values of a row that lies whole: its print and its cells.
const WHOLE: usize = 1 + CELLS;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The secret of the fingerprints.
    pub secret: (u64, u64),
    /// A hash of what decides how a record is understood.
    pub reading: [u8; 32],
    /// The brokers' id of the opt-outs topic.
    pub topic_id: String,
    /// Milliseconds since the Unix epoch.
    pub taken_at_ms: i64,
    /// By partition.
    pub partitions: Vec<Reached>,
    /// Records whose key cannot be read.
    pub unreadable: Vec<Position>,
}

/// How far a partition was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Next offset to apply.
    pub position: u64,
    /// Some of the last records before it, in order.
    pub marks: Vec<Mark>,
}

/// A record by its place and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub offset: u64,
    pub hash: u64,
}

/// Why a file is no snapshot that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is no snapshot of this version")]
    Version,
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("it is damaged: {0}")]
    Misfit(#[from] Misfit),
}

/// Writes a snapshot: a head, all shards in order, a tail.
pub struct SnapshotWriter<W> {
    out: W,
    frame: Vec<u8>,
    bytes: u64,
}

impl<W: Write> SnapshotWriter<W> {
    /// Writes the head.
    pub fn new(mut out: W, head: &Head) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        let mut writer = Self { out, frame: Vec::new(), bytes: MAGIC.len() as u64 };
        let position = |at: &Position| proto::SnapshotPosition { partition: at.partition, offset: at.offset };
        writer.write(&proto::SnapshotHead {
            print_key_one: head.secret.0,
            print_key_other: head.secret.1,
            reading: head.reading.to_vec(),
            topic_id: head.topic_id.clone(),
            taken_at_ms: head.taken_at_ms,
            partitions: head.partitions.iter().map(reached_to_proto).collect(),
            unreadable: head.unreadable.iter().map(position).collect(),
        })?;
        Ok(writer)
    }

    /// Writes the next shard.
    pub fn shard(&mut self, number: usize, image: &ShardImage) -> io::Result<()> {
        let (bases, widths) = image.columns.iter().copied().unzip();
        self.write(&proto::SnapshotShard {
            number: number as u32,
            tags: image.tags.iter().flat_map(|tag| tag.to_le_bytes()).collect(),
            rows: image.rows.clone(),
            bases,
            widths,
            wide: whole_to_proto(&image.wide),
            far: whole_to_proto(&image.far),
            notes: image.notes.iter().flat_map(|note| [note.print, note.slot.into(), note.note]).collect(),
            wide_at_fit: image.wide_at_fit as u64,
        })
    }

    /// Writes the tail; bytes written in all.
    pub fn finish(mut self, tables: &SideTables, seen: &Seen) -> io::Result<(W, u64)> {
        let stretch = |(partition, stretch, from_ms): &(u32, u64, i64)| proto::SnapshotStretch {
            partition: *partition,
            stretch: *stretch,
            from_ms: *from_ms,
        };
        let business = |(name, programs): &(Box<str>, Vec<Box<str>>)| proto::SnapshotBusiness {
            name: name.to_string(),
            programs: programs.iter().map(ToString::to_string).collect(),
        };
        self.write(&proto::SnapshotTail {
            slots: tables.slots.clone(),
            sources: tables.sources.iter().flat_map(|(topic, partition)| [*topic, *partition]).collect(),
            stretches: tables.stretches.iter().map(stretch).collect(),
            businesses: seen.businesses.iter().map(business).collect(),
            older_acts: seen.older_acts,
            strange_partitions: tables.strange_partitions,
        })?;
        Ok((self.out, self.bytes))
    }

    fn write(&mut self, message: &impl Message) -> io::Result<()> {
        self.frame.clear();
        message.encode(&mut self.frame).map_err(io::Error::other)?;
        self.out.write_all(&(self.frame.len() as u32).to_le_bytes())?;
        self.out.write_all(&crc32fast::hash(&self.frame).to_le_bytes())?;
        self.out.write_all(&self.frame)?;
        self.bytes += 8 + self.frame.len() as u64;
        Ok(())
    }
}

/// A snapshot of which the head was read.
pub struct SnapshotReader<R> {
    from: R,
    frame: Vec<u8>,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the head.
    pub fn new(mut from: R) -> Result<(Head, Self), Unusable> {
        let mut magic = [0; MAGIC.len()];
        match from.read_exact(&mut magic) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error.into()),
            Err(_) => return Err(Unusable::Version),
            Ok(()) if magic != MAGIC => return Err(Unusable::Version),
            Ok(()) => {}
        }
        let mut reader = Self { from, frame: Vec::new() };
        let head: proto::SnapshotHead = reader.read()?;
        let position = |at: &proto::SnapshotPosition| Position { partition: at.partition, offset: at.offset };
        let head = Head {
            secret: (head.print_key_one, head.print_key_other),
            reading: head.reading.try_into().map_err(|_| Unusable::Damaged("the hash of the rules of reading"))?,
            topic_id: head.topic_id,
            taken_at_ms: head.taken_at_ms,
            partitions: head.partitions.iter().map(reached_of_proto).collect(),
            unreadable: head.unreadable.iter().map(position).collect(),
        };
        Ok((head, reader))
    }

    /// Reads the rest: the view under this key, at these positions.
    pub fn view(mut self, print_key: PrintKey, positions: Vec<u64>) -> Result<ConsentView, Unusable> {
        let mut assembly = Assembly::new(print_key);
        for number in 0..SHARDS {
            let shard: proto::SnapshotShard = self.read()?;
            if shard.number as usize != number {
                return Err(Unusable::Damaged("shards out of order"));
            }
            assembly.add(image_of_proto(shard)?)?;
        }
        let tail: proto::SnapshotTail = self.read()?;
        if self.from.read(&mut [0])? != 0 {
            return Err(Unusable::Damaged("something behind the tail"));
        }
        let (sources, []) = tail.sources.as_chunks::<2>() else { return Err(Unusable::Damaged("part of a source")) };
        let tables = SideTables {
            slots: tail.slots,
            sources: sources.iter().map(|[topic, partition]| (*topic, *partition)).collect(),
            stretches: tail.stretches.iter().map(|known| (known.partition, known.stretch, known.from_ms)).collect(),
            strange_partitions: tail.strange_partitions,
        };
        let programs = |business: proto::SnapshotBusiness| business.programs.into_iter().map(Into::into).collect();
        let seen = Seen {
            businesses: tail.businesses.into_iter().map(|business| (business.name.as_str().into(), programs(business))).collect(),
            older_acts: tail.older_acts,
        };
        Ok(ConsentView::assemble(assembly.finish(tables)?, positions, seen))
    }

    fn read<M: Message + Default>(&mut self) -> Result<M, Unusable> {
        let mut preamble = [0; 8];
        self.fill(&mut preamble)?;
        let [a, b, c, d, sum @ ..] = preamble;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MOST_FRAME_BYTES {
            return Err(Unusable::Damaged("a frame that is too long"));
        }
        let mut frame = std::mem::take(&mut self.frame);
        // No more is allocated than the file holds.
        frame.clear();
        if self.from.by_ref().take(length as u64).read_to_end(&mut frame)? != length {
            return Err(Unusable::Damaged("it ends early"));
        }
        if crc32fast::hash(&frame) != u32::from_le_bytes(sum) {
            return Err(Unusable::Damaged("a checksum"));
        }
        let message = M::decode(frame.as_slice()).map_err(|_| Unusable::Damaged("a frame that cannot be read"))?;
        self.frame = frame;
        Ok(message)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Unusable> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Unusable::Damaged("it ends early"),
            _ => error.into(),
        })
    }
}

fn reached_to_proto(reached: &Reached) -> proto::SnapshotPartition {
    let marks = reached.marks.iter().map(|mark| proto::SnapshotMark { offset: mark.offset, hash: mark.hash });
    proto::SnapshotPartition { position: reached.position, marks: marks.collect() }
}

fn reached_of_proto(reached: &proto::SnapshotPartition) -> Reached {
    let marks = reached.marks.iter().map(|mark| Mark { offset: mark.offset, hash: mark.hash });
    Reached { position: reached.position, marks: marks.collect() }
}

fn whole_to_proto(rows: &[WholeRow]) -> Vec<u64> {
    // Numbers with a sign keep their bits.
    rows.iter().flat_map(|row| std::iter::once(row.print).chain(row.cells.map(i64::cast_unsigned))).collect()
}

fn whole_of_proto(values: &[u64]) -> Result<Vec<WholeRow>, Unusable> {
    let (rows, []) = values.as_chunks::<WHOLE>() else { return Err(Unusable::Damaged("part of a row")) };
    let row = |[print, cells @ ..]: &[u64; WHOLE]| WholeRow { print: *print, cells: cells.map(u64::cast_signed) };
    Ok(rows.iter().map(row).collect())
}

fn image_of_proto(shard: proto::SnapshotShard) -> Result<ShardImage, Unusable> {
    let (tags, []) = shard.tags.as_chunks::<2>() else { return Err(Unusable::Damaged("part of a tag")) };
    let (notes, []) = shard.notes.as_chunks::<3>() else { return Err(Unusable::Damaged("part of a note")) };
    let (Ok(bases), Ok(widths)) = (<[i64; CELLS]>::try_from(shard.bases), <[u8; CELLS]>::try_from(shard.widths)) else {
        return Err(Unusable::Damaged("the number of columns"));
    };
    let note = |[print, slot, note]: &[u64; 3]| NoteRow { print: *print, slot: *slot as u32, note: *note };
    Ok(ShardImage {
        tags: tags.iter().map(|tag| u16::from_le_bytes(*tag)).collect(),
        columns: std::array::from_fn(|column| (bases[column], widths[column])),
        wide: whole_of_proto(&shard.wide)?,
        far: whole_of_proto(&shard.far)?,
        notes: notes.iter().map(note).collect(),
        wide_at_fit: usize::try_from(shard.wide_at_fit).unwrap_or_default(),
        rows: shard.rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::{Act, ConsentState, Source};
    use crate::domain::identity::Identity;
    use crate::domain::key::{Channel, ConsentKey, Subject};
    use crate::domain::time::Timestamp;
    use proptest::prelude::*;

    const PRINTS: PrintKey = PrintKey::new(8, 9);

    fn head() -> Head {
        Head {
            secret: PRINTS.secret(),
            reading: [7; 32],
            topic_id: "id".to_owned(),
            taken_at_ms: 5,
            partitions: vec![
                Reached { position: 9, marks: vec![Mark { offset: 7, hash: 1 }, Mark { offset: 8, hash: u64::MAX }] },
                Reached::default(),
            ],
            unreadable: vec![Position { partition: 1, offset: 3 }],
        }
    }

    fn key(number: u32) -> ConsentKey {
        ConsentKey {
            business: format!("b{}", number % 3).into(),
            channel: Channel::Whatsapp,
            identity: Identity::parse(&format!("ext:{number}")).expect("an identity"),
            subject: Subject::parse(if number.is_multiple_of(7) { "program:news" } else { "marketing" }).expect("a subject"),
        }
    }

    fn view(people: u32) -> ConsentView {
        let mut view = ConsentView::new(PRINTS, 2);
        for number in 0..people {
            let state = if number.is_multiple_of(5) { ConsentState::OptedIn } else { ConsentState::OptedOut };
            let act = Act {
                state,
                occurred_at: Timestamp::EPOCH.plus_millis(i64::from(number) * 1_000_003 % 1_793_500_000_000),
                source: Source { topic: 1, partition: number % 4, offset: u64::from(number), index: 0 },
                cause: Position { partition: number % 2, offset: u64::from(number) },
                changed_state: true,
            };
            view.apply(&key(number), act, "wamid.1");
        }
        view.advance(0, 9);
        view
    }

    fn written(view: &ConsentView) -> Vec<u8> {
        let mut writer = SnapshotWriter::new(Vec::new(), &head()).expect("memory");
        (0..SHARDS).for_each(|shard| writer.shard(shard, &view.set().shard_image(shard)).expect("memory"));
        let (bytes, count) = writer.finish(&view.set().side_tables(), &view.seen()).expect("memory");
        assert_eq!(bytes.len() as u64, count);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Head, ConsentView), Unusable> {
        let (head, rest) = SnapshotReader::new(bytes)?;
        let positions = head.partitions.iter().map(|reached| reached.position).collect();
        Ok((head, rest.view(PRINTS, positions)?))
    }

    #[test]
    fn what_was_written_reads_back() {
        let view = view(3000);
        let (again, other) = read(&written(&view)).expect("readable");
        assert_eq!(again, head());
        assert_eq!((other.set().len(), other.applied(), other.older_acts()), (view.set().len(), view.applied(), view.older_acts()));
        assert_eq!(other.programs("b0").collect::<Vec<_>>(), ["news"]);
        assert!(other.knows_business("b2") && !other.knows_business("b3"));
        for number in 0..3100 {
            let (person, slot) = PRINTS.of_key(&key(number));
            assert_eq!(other.standing(person, slot), view.standing(person, slot));
            let source = Source { topic: 1, partition: number % 4, offset: u64::from(number), index: 0 };
            assert_eq!(other.opted_in_by(&key(number), "wamid.1", &source), view.opted_in_by(&key(number), "wamid.1", &source));
        }
    }

    #[test]
    fn a_file_begins_with_its_version_and_a_frame_with_length_and_checksum() {
        let bytes = written(&view(1));
        assert!(bytes.starts_with(b"stopgate snapshot 2\n\x60\x00\x00\x00"), "{:?}", &bytes[..24]);
        let frame = &bytes[28..28 + 0x60];
        assert_eq!(bytes[24..28], crc32fast::hash(frame).to_le_bytes());
        assert_eq!(frame[..10], [0x09, 8, 0, 0, 0, 0, 0, 0, 0, 0x11]);
        assert!(matches!(read(b"stopgate snapshot 1\n"), Err(Unusable::Version)));
        assert!(matches!(read(b""), Err(Unusable::Version)));
    }

    #[test]
    fn a_file_that_ends_early_or_goes_on_is_refused() {
        let bytes = written(&view(40));
        for cut in (0..bytes.len()).step_by(997).chain([bytes.len() - 1]) {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(matches!(read(&longer), Err(Unusable::Damaged("something behind the tail"))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_bit_that_has_turned_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let mut bytes = written(&view(200));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn frames_of_anything_are_refused_without_a_panic(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4)) {
            let mut bytes = MAGIC.to_vec();
            for frame in frames {
                bytes.extend((frame.len() as u32).to_le_bytes());
                bytes.extend(crc32fast::hash(&frame).to_le_bytes());
                bytes.extend(frame);
            }
            prop_assert!(read(&bytes).is_err());
        }
    }
}
