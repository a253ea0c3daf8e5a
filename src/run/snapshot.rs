//! Snapshots of the view on disk: one file, written beside the old one and put in its place, so that there is a whole one
//! at any moment, whenever the process is killed.
//!
//! A snapshot speeds a start up and decides nothing: what does not fit the topic to the last record, or is too old, or was
//! read under other rules, is told and left aside, and the topic is read from its beginning.
//!
//! It is taken shard by shard, while others look up and apply. Its positions were reached before: see
//! [`crate::domain::suppression::image`].

use super::stop::Stop;
use super::view::SharedView;
use crate::config::Config;
use crate::domain::business::Businesses;
use crate::domain::consent::Position;
use crate::domain::identity::IdentityKey;
use crate::domain::phone::PHONE_RULES_VERSION;
use crate::domain::suppression::{PrintKey, SHARDS};
use crate::domain::view::ConsentView;
use crate::kafka::follower::Followed;
use crate::metrics::{Metrics, SnapshotResult};
use crate::wire::snapshot::{Head, Mark, Reached, SnapshotReader, SnapshotWriter, Unusable};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Records of each partition by which a topic is recognised. Compaction may take some of them away.
const MARKS: usize = 4;
/// What cannot stand in a file's name.
const NO_NAME: &AsciiSet = &CONTROLS.add(b'/').add(b'%');
const BUFFER: usize = 1 << 18;
/// How far the clocks of a machine may differ from one start to the next.
const CLOCK_MS: i64 = 60_000;

/// Where a process keeps its snapshot, and what one must be of to be used.
pub struct Snapshots {
    directory: PathBuf,
    file: PathBuf,
    unfinished: PathBuf,
    reading: [u8; 32],
    identities: Option<IdentityKey>,
}

/// A snapshot whose head was read.
pub struct Opened {
    pub head: Head,
    rest: SnapshotReader<BufReader<File>>,
    print_key: PrintKey,
}

impl Snapshots {
    /// The place of this configuration's snapshot.
    pub fn new(config: &Config) -> Self {
        let name = utf8_percent_encode(&config.instance, NO_NAME).to_string();
        Self {
            directory: config.state_dir.clone(),
            file: config.state_dir.join(format!("{name}.snapshot")),
            unfinished: config.state_dir.join(format!("{name}.snapshot.new")),
            reading: reading(&config.businesses, config.identity_key.as_ref()),
            identities: config.identity_key,
        }
    }

    /// The snapshot there is, if there is one that was read under the same rules. Its key is needed before anything else is
    /// begun; whether it fits the topic is seen once the brokers answer.
    pub fn open(&self) -> Option<Opened> {
        let opened = File::open(&self.file).map_err(Unusable::from).and_then(|file| SnapshotReader::new(BufReader::with_capacity(BUFFER, file)));
        match opened {
            Ok((head, rest)) if head.reading == self.reading => {
                let print_key = PrintKey::new(head.secret.0, head.secret.1).with_identities(self.identities);
                Some(Opened { head, rest, print_key })
            }
            Ok(_) => {
                self.leave_aside("businesses or the key of identities have changed since it was taken");
                None
            }
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.leave_aside(&error.to_string());
                None
            }
        }
    }

    /// Tells why the snapshot is not used.
    pub fn leave_aside(&self, why: &str) {
        tracing::warn!(file = %self.file.display(), why, "the snapshot is not used: the opt-outs topic is read from its beginning");
    }

    /// Writes a snapshot in place of the one there is; bytes written. `None` where the view was made anew meanwhile, or the
    /// process stops: the old one stays.
    pub fn save(&self, view: &SharedView, point: Point, stop: &Stop) -> io::Result<Option<u64>> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // What a process left that was killed is written over.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.unfinished)?;
        let saved = self.write(view, point, stop, file);
        if !matches!(saved, Ok(Some(_))) {
            // A full disk is freed of what does not fit on it. Where that fails too, the next one writes over it.
            drop(fs::remove_file(&self.unfinished));
        }
        saved
    }

    fn write(&self, view: &SharedView, point: Point, stop: &Stop, file: File) -> io::Result<Option<u64>> {
        let head = Head {
            secret: view.print_key().secret(),
            reading: self.reading,
            topic_id: point.topic_id,
            taken_at_ms: now_ms(),
            partitions: point.partitions,
            unreadable: point.unreadable,
        };
        let mut writer = SnapshotWriter::new(BufWriter::with_capacity(BUFFER, file), &head)?;
        for shard in 0..SHARDS {
            let image = view.read_of(point.epoch).map(|view| view.set().shard_image(shard));
            let Some(image) = image.filter(|_| !stop.is_asked()) else { return Ok(None) };
            writer.shard(shard, &image)?;
        }
        let Some((tables, seen)) = view.read_of(point.epoch).map(|view| (view.set().side_tables(), view.seen())) else { return Ok(None) };
        let (out, bytes) = writer.finish(&tables, &seen)?;
        out.into_inner()?.sync_all()?;
        fs::rename(&self.unfinished, &self.file)?;
        sync_directory(&self.directory)?;
        Ok(Some(bytes))
    }
}

impl Opened {
    /// The key that its fingerprints were made under.
    pub fn print_key(&self) -> PrintKey {
        self.print_key
    }

    /// Why it cannot be used at this moment for a topic of this id whose tombstones are kept for so long.
    pub fn unfit(&self, topic_id: &str, tombstones_ms: i64, now_ms: i64) -> Option<&'static str> {
        let age = now_ms.saturating_sub(self.head.taken_at_ms);
        match () {
            () if topic_id.is_empty() || self.head.topic_id != topic_id => Some("it is of another topic"),
            () if age < -CLOCK_MS => Some("the clock has gone back since it was taken"),
            // An erasure that was written since may have been taken from the topic again.
            () if age > tombstones_ms - CLOCK_MS => Some("it is older than the topic keeps erasures (delete.retention.ms)"),
            () => None,
        }
    }

    /// The view that it holds.
    pub fn view(self) -> Result<ConsentView, Unusable> {
        let positions = self.head.partitions.iter().map(|reached| reached.position).collect();
        self.rest.view(self.print_key, positions)
    }
}

/// A moment to take a snapshot of: what had been reached before its first shard is read.
pub struct Point {
    pub epoch: u64,
    pub topic_id: String,
    pub partitions: Vec<Reached>,
    pub unreadable: Vec<Position>,
}

/// The last records of each partition.
pub struct Marks(Vec<VecDeque<Mark>>);

impl Marks {
    /// None yet, or those of a snapshot.
    pub fn new(partitions: &[Reached]) -> Self {
        Self(partitions.iter().map(|reached| reached.marks.iter().copied().collect()).collect())
    }

    /// Records were applied, in order of their partitions.
    pub fn pass(&mut self, records: &[Followed<'_>]) {
        let mut wanted = vec![MARKS; self.0.len()];
        let mut left = wanted.len() * MARKS;
        let mut last: Vec<(usize, Mark)> = Vec::new();
        for record in records.iter().rev() {
            let partition = record.partition as usize;
            if let Some(wanted) = wanted.get_mut(partition).filter(|wanted| **wanted > 0) {
                *wanted -= 1;
                left -= 1;
                last.push((partition, mark(record.offset, record.key, record.value)));
                if left == 0 {
                    break;
                }
            }
        }
        for (partition, mark) in last.into_iter().rev() {
            if self.0[partition].len() == MARKS {
                self.0[partition].pop_front();
            }
            self.0[partition].push_back(mark);
        }
    }

    /// With how far each partition was applied.
    pub fn reached(&self, positions: &[u64]) -> Vec<Reached> {
        let reached = |(position, marks): (&u64, &VecDeque<Mark>)| Reached { position: *position, marks: marks.iter().copied().collect() };
        positions.iter().zip(&self.0).map(reached).collect()
    }
}

/// A record by its place and what it says.
pub fn mark(offset: u64, key: Option<&[u8]>, value: Option<&[u8]>) -> Mark {
    let mut hash = Sha256::new();
    for part in [key, value] {
        // An absent part is no empty one.
        hash.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        hash.update(part.unwrap_or_default());
    }
    let first = hash.finalize().first_chunk().copied().unwrap_or_default(); // of 32 bytes
    Mark { offset, hash: u64::from_le_bytes(first) }
}

/// What decides how a record is understood: which numbers are one, which names are one business, and whether a hash is one of an address.
fn reading(businesses: &Businesses, identities: Option<&IdentityKey>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(PHONE_RULES_VERSION.to_le_bytes());
    for (alias, name) in businesses.resolutions() {
        for part in [alias, name] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hash.update(identities.map_or([0; 64], |key| key.digest_of("stopgate snapshot")));
    hash.finalize().into()
}

/// Writes snapshots of the points that it is given, until the process stops.
pub struct Keeper {
    pub snapshots: Arc<Snapshots>,
    pub view: Arc<SharedView>,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
    pub points: Receiver<Point>,
}

/// Takes points while no other is being written.
pub type Points = mpsc::SyncSender<Point>;

impl Keeper {
    /// Runs until the process stops.
    pub fn run(self) {
        while !self.stop.is_asked() {
            match self.points.recv_timeout(Duration::from_millis(100)) {
                Ok(point) => self.keep(point),
                Err(RecvTimeoutError::Timeout) => {}
                // The applying thread has ended and says why.
                Err(RecvTimeoutError::Disconnected) => self.stop.sleep(Duration::from_millis(100)),
            }
        }
    }

    fn keep(&self, point: Point) {
        let began = Instant::now();
        let result = match self.snapshots.save(&self.view, point, &self.stop) {
            Ok(None) => return,
            Ok(Some(bytes)) => {
                self.metrics.snapshot_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
                self.metrics.snapshot_timestamp_seconds.set(now_ms() / 1000);
                tracing::info!(bytes, seconds = began.elapsed().as_secs_f64(), "snapshot written");
                "written"
            }
            Err(error) => {
                tracing::warn!(directory = %self.snapshots.directory.display(), %error, "no snapshot could be written: a restart reads the whole topic");
                "failed"
            }
        };
        self.metrics.snapshots.get_or_create(&SnapshotResult { result }).inc();
    }
}

/// A rename is durable once its directory is.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
