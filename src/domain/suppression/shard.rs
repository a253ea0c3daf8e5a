//! One shard of the set: a small table of rows of numbers, by 52 bits of a person's fingerprint.
//!
//! Hot: buckets of 31 tags of 16 bits, one line of cache each. A print's bucket follows from its place among all prints
//! (`print × buckets ÷ 2⁵²`), so the bits that the bucket implies are stored nowhere; 13 of the others are in the tag and
//! the rest in the row. A row that finds its bucket full lies in one of the six behind it, and its tag says how far. The last
//! two bytes of a bucket are a Bloom filter of the rows that have had to go past it: a look-up ends at the first bucket that
//! no row like the one it looks for went past, nine times of ten its own. To end at the first that is not full took 1.5 to
//! 1.7 lines on average, because full buckets lie together.
//!
//! Read for those alone who are known: the rows, packed to the bit in columns of the [`Shape`] that fits most of them. What
//! does not fit lies whole in a table of wide rows. The shape is fitted anew when too many are wide. Where all seven buckets
//! are full although the shard is not, a row lies whole in a table of far rows: until the shard grows, or for good where
//! somebody has hundreds of entries.
//!
//! Growth moves the rows of one shard at once, into a new one: whoever shares the set makes it beside the old one, while
//! others look up, and puts it in its place ([`Shard::relieved`]).
//!
//! Invariants: no two rows have the same print and slot; each bucket that a row went past says so, from then on until all rows
//! are moved; a wide row has its cells in `wide` and nowhere else.

use super::image::{Misfit, NoteRow, ShardImage, WholeRow};
use super::memory::{Block, Plain};
use super::shape::{Bits, Cells, MAX_WIDTH, Shape};
use hashbrown::HashTable;

/// Bits of a print within its shard.
pub(super) const PRINT_BITS: u32 = 52;
/// The cell that is part of a row's key.
const SLOT: usize = 0;

const LANES: usize = 31;
const TAG_BITS: u32 = 13;
/// The bucket a print belongs to, and as many behind it as the three bits of a tag can tell; 0 is an empty lane.
const REACH: usize = 7;
/// Lanes of a bucket that are taken on average when a shard grows. Beyond it more and more rows find no lane within reach.
pub(super) const MOST_LANES: usize = 28;
/// How many times its size a shard becomes at once, where it is known that it will be filled; up to twice that, if it has the
/// size then that it will need.
const AT_ONCE: usize = 8;
/// A shard of fewer rows moves them before anybody has noticed.
const MOVED_AT_ONCE: usize = 256;
/// Rows that find no lane near their bucket may lie in the far table of a shard that is half full or fuller, until it
/// grows: so many, because whoever can make it grow beside the set does so at the first of them.
const FAR_UNTIL_GROWN: usize = 16;
/// Rows sampled to fit a shape.
const SAMPLE: usize = 256;

/// What is known of 31 rows in one line of cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// How far from its own bucket each row lies, plus one, above 13 bits of its print. 0: no row.
    tags: [u16; LANES],
    /// Rows that found all lanes taken and went on to the next bucket, by the lowest bits of their tags.
    passed: u16,
}

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is one line of cache");

// SAFETY: zeroes are empty lanes, past which nobody went.
unsafe impl Plain for Bucket {}

/// One bit for each lane.
const ALL_LANES: u32 = (1 << LANES) - 1;

impl Bucket {
    /// The lanes that hold this tag, as bits.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn lanes(&self, tag: u16) -> u32 {
        use std::arch::x86_64::{__m128i, _mm_cmpeq_epi16, _mm_load_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16};
        // SAFETY: every x86-64 processor has SSE2. The four loads are of 16 bytes each, at offsets 0, 16, 32 and 48 of the
        // 64 bytes that a bucket is and is aligned to. What the compiler makes of the loop below takes ten times as long.
        unsafe {
            let (eights, wanted) = (std::ptr::from_ref(self).cast::<__m128i>(), _mm_set1_epi16(tag.cast_signed()));
            let equal = |eight: usize| _mm_cmpeq_epi16(_mm_load_si128(eights.add(eight)), wanted);
            let low = _mm_movemask_epi8(_mm_packs_epi16(equal(0), equal(1)));
            let high = _mm_movemask_epi8(_mm_packs_epi16(equal(2), equal(3)));
            (low.cast_unsigned() | high.cast_unsigned() << 16) & ALL_LANES
        }
    }

    /// The lanes that hold this tag, as bits.
    #[cfg(not(target_arch = "x86_64"))]
    fn lanes(&self, tag: u16) -> u32 {
        self.tags.iter().zip(0..).fold(0, |lanes, (held, lane)| lanes | u32::from(*held == tag) << lane)
    }

    /// Whether a row with such a tag may have gone past.
    #[inline]
    fn was_passed(&self, tag: u16) -> bool {
        self.passed & Self::passing(tag) != 0
    }

    /// The bit of `passed` that stands for such a tag, at any distance.
    #[inline]
    fn passing(tag: u16) -> u16 {
        1 << (u32::from(tag) % u16::BITS)
    }
}

/// Asks for the line of cache that this begins in. A load would do it too, but the processor has room for few loads that
/// wait, and for many of these.
#[inline]
fn fetch_line<T>(of: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has SSE; a prefetch of any address changes nothing and cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(of).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(of);
}

/// Lines of cache that are needed behind a bucket: of a row, which may begin in one and end in the next, and of how rows are
/// written.
#[derive(Clone, Copy)]
pub(super) struct RowLines<'a> {
    row: [&'a u8; 2],
    cold: &'a Cold,
}

/// What a look-up needs after a bucket that was fetched before.
pub(super) enum Next<'a> {
    Row(RowLines<'a>),
    /// The bucket behind, which is being fetched.
    Bucket,
    Nothing,
}

impl RowLines<'_> {
    /// Fetches them, without waiting.
    #[inline]
    pub(super) fn fetch(self) {
        self.row.into_iter().for_each(fetch_line);
        self.cold.shape.lines().into_iter().for_each(fetch_line);
    }

    /// Fetches besides what the row of an act may be written to.
    #[inline]
    pub(super) fn fetch_to_write(self) {
        self.fetch();
        fetch_line(&self.cold.wide_at_fit);
    }
}

/// How far a shard grows when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// By a sixteenth: little is unused.
    Tight,
    /// To twice its size, or fast towards this many buckets, while very many rows are added: each is moved seldom.
    Bulk(usize),
}

/// What a shard's memory is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Buckets,
    Rows,
}

/// A row that lies whole in a table of its own.
#[derive(Clone, Copy)]
struct Whole {
    print: u64,
    cells: Cells,
}

/// What a key's owner said last time, as a number: see [`super::SuppressionSet::note_opt_in`].
#[derive(Clone, Copy)]
struct Note {
    print: u64,
    slot: u32,
    note: u64,
}

/// A table of rows. What most look-ups need is in one line of cache, and that of all shards in 256 KiB: they stay near.
#[derive(Clone, Default)]
#[repr(C, align(64))]
pub(super) struct Shard {
    buckets: Block<Bucket>,
    rows: Bits,
    row_bits: usize,
    len: usize,
    far: Far,
    cold: Box<Cold>,
}

const _: () = assert!(size_of::<Shard>() == 64, "a shard is one line of cache");

/// What only look-ups of those who are known need, the shape in its first two lines.
#[derive(Clone, Default)]
#[repr(C, align(64))]
struct Cold {
    shape: Shape,
    /// Wide rows that the last fit left.
    wide_at_fit: usize,
    wide: HashTable<Whole>,
    notes: HashTable<Note>,
}

/// Rows that found no lane. Most shards have none, and then there is no table.
#[derive(Clone, Default)]
struct Far(Option<Box<HashTable<Whole>>>);

impl Far {
    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |rows| rows.len())
    }

    fn iter(&self) -> impl Iterator<Item = &Whole> {
        self.0.iter().flat_map(|rows| rows.iter())
    }

    fn knows(&self, print: u64) -> bool {
        self.0.as_ref().is_some_and(|rows| rows.find(spread(print), |far| far.print == print).is_some())
    }

    fn get(&self, print: u64, slot: i64) -> Option<Cells> {
        find(self.0.as_ref()?, print, slot)
    }

    fn insert(&mut self, row: Whole) {
        insert(self.0.get_or_insert_default(), row);
    }

    fn take(&mut self, print: u64, slot: i64) -> Option<Whole> {
        let rows = self.0.as_mut()?;
        let taken = take(rows, print, slot);
        if rows.is_empty() {
            self.0 = None;
        }
        taken
    }

    fn shrink_to_fit(&mut self) {
        if let Some(rows) = &mut self.0 {
            rows.shrink_to_fit(|far| spread(far.print));
        }
    }

    fn allocated_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |rows| size_of_val(&**rows) + rows.allocation_size())
    }
}

/// Where a print belongs in a shard of some size.
#[derive(Clone, Copy)]
struct Place {
    bucket: usize,
    remainder: u64,
}

/// A print as the hash of a side table, which wants its highest bits used too.
fn spread(print: u64) -> u64 {
    print ^ (print << 40)
}

impl Place {
    #[inline]
    fn of(print: u64, buckets: usize) -> Self {
        let product = u128::from(print) * buckets as u128;
        let within = product as u64 & ((1 << PRINT_BITS) - 1);
        // Within a bucket prints lie at least `buckets` apart: the lower bits tell nothing.
        Self { bucket: (product >> PRINT_BITS) as usize, remainder: within >> buckets.ilog2() }
    }

    /// The print that belongs here: the only one whose product lies so close behind.
    fn print(self, buckets: usize) -> u64 {
        let low = self.remainder << buckets.ilog2();
        match buckets < 1 << (64 - PRINT_BITS) {
            true => ((self.bucket as u64) << PRINT_BITS | low).div_ceil(buckets as u64),
            false => ((self.bucket as u128) << PRINT_BITS | u128::from(low)).div_ceil(buckets as u128) as u64,
        }
    }

    fn tag(self, distance: usize) -> u16 {
        ((distance as u16 + 1) << TAG_BITS) | (self.remainder as u16 & ((1 << TAG_BITS) - 1))
    }

    /// What the tag has no room for.
    fn rest(self) -> u64 {
        self.remainder >> TAG_BITS
    }
}

impl Shard {
    fn with_buckets(buckets: usize, shape: Shape) -> Self {
        let mut shard = Self { buckets: Block::zeroed(buckets), cold: Cold { shape, ..Cold::default() }.into(), ..Self::default() };
        shard.measure();
        shard.rows = Bits::zeroed(buckets * LANES * shard.row_bits);
        shard
    }

    /// Bits of what a tag has no room for.
    fn rest_bits(&self) -> u8 {
        (PRINT_BITS - TAG_BITS - self.buckets.len().max(1).ilog2()) as u8
    }

    /// A row is the rest of its print, whether it is wide, and the columns.
    fn measure(&mut self) {
        self.row_bits = usize::from(self.rest_bits()) + 1 + self.cold.shape.width();
    }

    fn row(&self, lane: usize) -> usize {
        lane * self.row_bits
    }

    fn is_wide(&self, lane: usize) -> bool {
        self.rows.get(self.row(lane) + usize::from(self.rest_bits()), 1) == 1
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        let tables = self.cold.wide.allocation_size() + self.far.allocated_bytes() + self.cold.notes.allocation_size();
        tables + size_of_val(&*self.cold) + self.buckets.allocated_bytes() + self.rows.allocated_bytes()
    }

    /// Looks at the lanes that hold rows of a print until `look` has found something.
    #[inline]
    fn scan<T>(&self, print: u64, mut look: impl FnMut(usize) -> Option<T>) -> Option<T> {
        if self.buckets.is_empty() {
            return None;
        }
        let place = Place::of(print, self.buckets.len());
        let mut bucket = place.bucket;
        for distance in 0..REACH.min(self.buckets.len()) {
            let held = self.buckets.get(bucket)?;
            let tag = place.tag(distance);
            let mut lanes = held.lanes(tag);
            while lanes != 0 {
                let lane = bucket * LANES + lanes.trailing_zeros() as usize;
                if self.rows.get(self.row(lane), self.rest_bits()) == place.rest()
                    && let Some(found) = look(lane)
                {
                    return Some(found);
                }
                lanes &= lanes - 1;
            }
            if !held.was_passed(tag) {
                return None;
            }
            bucket = (bucket + 1) % self.buckets.len();
        }
        None
    }

    /// Fetches the line that a look-up of this print will read first, without waiting for it.
    #[inline]
    pub(super) fn fetch(&self, print: u64) {
        if !self.buckets.is_empty() {
            fetch_line(&self.buckets[Place::of(print, self.buckets.len()).bucket]);
        }
    }

    /// What a look-up of this print will read after the bucket at this distance from its own.
    #[inline]
    pub(super) fn next_to_read(&self, print: u64, distance: usize) -> Next<'_> {
        self.next_line(print, distance, Bucket::lanes, Bucket::was_passed)
    }

    /// What an act of this print will read and write after the bucket at this distance from its own: the row that it has
    /// there, or would get.
    #[inline]
    pub(super) fn next_to_write(&self, print: u64, distance: usize) -> Next<'_> {
        self.next_line(print, distance, |bucket, tag| bucket.lanes(tag) | bucket.lanes(0), |_, _| true)
    }

    /// The row in the first of some lanes of a bucket; where there is none, the bucket behind, if it counts.
    #[inline]
    fn next_line(&self, print: u64, distance: usize, lanes: impl Fn(&Bucket, u16) -> u32, goes_on: impl Fn(&Bucket, u16) -> bool) -> Next<'_> {
        if self.buckets.is_empty() {
            return Next::Nothing;
        }
        let place = Place::of(print, self.buckets.len());
        let number = place.bucket + distance;
        // The last bucket's rows may lie in the first ones: so few that they are not fetched ahead.
        let Some(bucket) = self.buckets.get(number) else { return Next::Nothing };
        let tag = place.tag(distance);
        let lanes = lanes(bucket, tag);
        if lanes != 0 {
            let row = self.row(number * LANES + lanes.trailing_zeros() as usize);
            let (first, last) = (self.rows.byte(row), self.rows.last_byte(row + self.row_bits));
            return first.zip(last).map_or(Next::Nothing, |(first, last)| Next::Row(RowLines { row: [first, last], cold: &self.cold }));
        }
        match self.buckets.get(number + 1).filter(|_| goes_on(bucket, tag)) {
            Some(behind) => {
                fetch_line(behind);
                Next::Bucket
            }
            None => Next::Nothing,
        }
    }

    /// Whether any row is of this print.
    #[inline]
    pub(super) fn knows(&self, print: u64) -> bool {
        self.scan(print, Some).is_some() || self.far.knows(print)
    }

    /// The row of a print and slot.
    pub(super) fn get(&self, print: u64, slot: i64) -> Option<Cells> {
        let near = self.scan(print, |lane| self.look(lane, print, slot));
        near.or_else(|| self.far.get(print, slot))
    }

    /// The row at this lane, if it is of this slot. Of several wide rows of a print none can be told from another.
    fn look(&self, lane: usize, print: u64, slot: i64) -> Option<Cells> {
        if self.is_wide(lane) {
            return find(&self.cold.wide, print, slot);
        }
        let cells = self.cells_at(lane);
        (cells[SLOT] == slot).then_some(cells)
    }

    fn cells_at(&self, lane: usize) -> Cells {
        self.cold.shape.read(&self.rows, self.row(lane) + usize::from(self.rest_bits()) + 1)
    }

    /// Replaces the row of a print and slot that is there.
    pub(super) fn replace(&mut self, print: u64, cells: Cells) {
        let slot = cells[SLOT];
        match self.scan(print, |lane| self.look(lane, print, slot).map(|_| lane)) {
            Some(lane) => {
                self.remove_wide(lane, print, slot);
                self.write(lane, print, &cells);
                self.refit_if_due(Growth::Tight);
            }
            None => {
                if self.far.take(print, slot).is_some() {
                    self.far.insert(Whole { print, cells });
                }
            }
        }
    }

    /// Adds a row of a print and slot that is not there.
    pub(super) fn add(&mut self, print: u64, cells: Cells, growth: Growth) {
        if self.buckets.is_empty() {
            let notes = std::mem::take(&mut self.cold.notes);
            *self = Self::with_buckets(1, Shape::fit(&[cells], 0));
            self.cold.notes = notes;
        }
        if self.len >= self.most() {
            *self = self.grown(growth);
        }
        self.len += 1;
        match self.take_lane(print) {
            Some(lane) => {
                self.write(lane, print, &cells);
                self.refit_if_due(growth);
            }
            None => {
                self.far.insert(Whole { print, cells });
                while self.is_crowded(FAR_UNTIL_GROWN) {
                    *self = self.grown(growth);
                }
            }
        }
    }

    /// The shard as it is when it has moved its rows, if it would have to for so many more, and that takes time.
    pub(super) fn relieved(&self, more: usize) -> Option<Self> {
        let is_full = self.len + more > self.most() || self.is_crowded(0);
        let is_misfit = self.is_misfit(more);
        match (self.len >= MOVED_AT_ONCE, is_full, is_misfit) {
            (true, true, _) => Some(self.grown(Growth::Tight)),
            (true, false, true) => Some(self.rebuilt(self.buckets.len(), Some(self.fitted(Growth::Tight)))),
            (true, false, false) | (false, _, _) => None,
        }
    }

    /// Rows that it may have.
    fn most(&self) -> usize {
        self.buckets.len() * MOST_LANES
    }

    /// Whether more rows than these have found no lane, and not because somebody has hundreds of them.
    fn is_crowded(&self, far: usize) -> bool {
        self.far.len() > far && self.len * 2 >= self.buckets.len() * LANES
    }

    /// Whether too many rows are wide, or were if so many more are.
    fn is_misfit(&self, more: usize) -> bool {
        self.cold.wide.len() + more > 2 * self.cold.wide_at_fit + 8 + self.len / 32
    }

    fn refit_if_due(&mut self, growth: Growth) {
        if self.is_misfit(0) {
            *self = self.rebuilt(self.buckets.len(), Some(self.fitted(growth)));
        }
    }

    /// The shape that fits its rows, and those that are expected.
    fn fitted(&self, growth: Growth) -> Shape {
        let ahead = match growth {
            Growth::Tight => 0,
            Growth::Bulk(expected) => (expected * MOST_LANES / self.len.max(1)) as u64,
        };
        Shape::fit(&self.sample(), ahead)
    }

    fn grown(&self, growth: Growth) -> Self {
        let buckets = self.buckets.len();
        let more = match growth {
            Growth::Tight => buckets / 16 + 1,
            Growth::Bulk(expected) if expected <= 2 * AT_ONCE * buckets => expected.saturating_sub(buckets).max(buckets),
            Growth::Bulk(_) => (AT_ONCE - 1) * buckets,
        };
        // A few wide rows are not worth a look at all others: the fit is due when they are many.
        let is_due = self.cold.wide.len() > self.len / 64;
        self.rebuilt(buckets + more, is_due.then(|| self.fitted(growth)))
    }

    /// Tags an empty lane near the bucket of a print, and tells the full ones before it; `None` where all are full.
    fn take_lane(&mut self, print: u64) -> Option<usize> {
        let place = Place::of(print, self.buckets.len());
        for distance in 0..REACH.min(self.buckets.len()) {
            let number = (place.bucket + distance) % self.buckets.len();
            let (bucket, tag) = (&mut self.buckets[number], place.tag(distance));
            let empty = bucket.lanes(0);
            if empty != 0 {
                let lane = empty.trailing_zeros() as usize;
                bucket.tags[lane] = tag;
                return Some(number * LANES + lane);
            }
            bucket.passed |= Bucket::passing(tag);
        }
        None
    }

    /// Writes the row of a tagged lane.
    fn write(&mut self, lane: usize, print: u64, cells: &Cells) {
        let fits = self.cold.shape.fits(cells);
        let rest = Place::of(print, self.buckets.len()).rest();
        let (at, rest_bits) = (self.row(lane), self.rest_bits());
        let mut row = self.rows.writer(at);
        row.push(rest_bits, rest);
        row.push(1, u64::from(!fits));
        if fits {
            self.cold.shape.write(&mut row, cells);
        }
        row.finish();
        if !fits {
            insert(&mut self.cold.wide, Whole { print, cells: *cells });
        }
    }

    fn remove_wide(&mut self, lane: usize, print: u64, slot: i64) {
        if self.is_wide(lane) {
            take(&mut self.cold.wide, print, slot);
        }
    }

    /// Removes the row of a print and slot.
    pub(super) fn remove(&mut self, print: u64, slot: i64) -> bool {
        match self.scan(print, |lane| self.look(lane, print, slot).map(|_| lane)) {
            Some(lane) => {
                self.remove_wide(lane, print, slot);
                self.buckets[lane / LANES].tags[lane % LANES] = 0;
            }
            None if self.far.take(print, slot).is_some() => {}
            None => return false,
        }
        self.len -= 1;
        true
    }

    /// Every row's lane and tag, in order of their buckets.
    fn tagged(&self) -> impl Iterator<Item = (usize, u16)> {
        let tags = self.buckets.iter().flat_map(|bucket| bucket.tags);
        tags.enumerate().filter(|(_, tag)| *tag != 0)
    }

    /// The print of a row.
    fn print_at(&self, lane: usize, tag: u16) -> u64 {
        let buckets = self.buckets.len();
        let distance = usize::from(tag >> TAG_BITS) - 1;
        let rest = self.rows.get(self.row(lane), self.rest_bits());
        let remainder = (rest << TAG_BITS) | u64::from(tag & ((1 << TAG_BITS) - 1));
        Place { bucket: (lane / LANES + buckets - distance) % buckets, remainder }.print(buckets)
    }

    /// All rows in so many buckets, and in another shape if there is one.
    fn rebuilt(&self, buckets: usize, other: Option<Shape>) -> Self {
        let (shape, refit) = (other.unwrap_or(self.cold.shape), other.is_some());
        let mut moved = Self::with_buckets(buckets, shape);
        let payload = 1 + shape.width();
        let mut wide = self.cold.wide.clone();
        let rest_bits = moved.rest_bits();
        for (lane, tag) in self.tagged() {
            let print = self.print_at(lane, tag);
            let is_wide = self.is_wide(lane);
            let Some(to) = moved.take_lane(print) else {
                // Which of the wide rows of a print this one is cannot be told and does not matter.
                let taken = if is_wide { take_any(&mut wide, print) } else { None };
                moved.far.insert(taken.unwrap_or_else(|| Whole { print, cells: self.cells_at(lane) }));
                continue;
            };
            if refit && !is_wide {
                moved.write(to, print, &self.cells_at(lane));
                continue;
            }
            let (from, at) = (self.row(lane) + usize::from(self.rest_bits()), moved.row(to));
            let mut row = moved.rows.writer(at);
            row.push(rest_bits, Place::of(print, buckets).rest());
            match is_wide {
                true => row.push(1, 1),
                false => row.copy(&self.rows, from, payload),
            }
            row.finish();
        }
        moved.len = self.len;
        moved.cold.wide_at_fit = self.cold.wide_at_fit;
        if refit {
            moved.take_wide(&wide);
            moved.cold.wide_at_fit = moved.cold.wide.len();
        } else {
            moved.cold.wide = wide;
        }
        for far in self.far.iter() {
            match moved.take_lane(far.print) {
                Some(lane) => moved.write(lane, far.print, &far.cells),
                None => moved.far.insert(*far),
            }
        }
        moved.cold.notes = self.cold.notes.clone();
        moved
    }

    /// Gives the rows that were wide elsewhere their cells: in the row where they fit now.
    fn take_wide(&mut self, wide: &HashTable<Whole>) {
        for Whole { print, cells } in wide {
            // Any wide row of the print will do: until all have their cells, none can be told from another.
            let lane = self.scan(*print, |lane| self.is_wide(lane).then_some(lane));
            match lane.filter(|_| self.cold.shape.fits(cells)) {
                Some(lane) => self.write(lane, *print, cells),
                None => insert(&mut self.cold.wide, Whole { print: *print, cells: *cells }),
            }
        }
    }

    fn sample(&self) -> Vec<Cells> {
        let step = (self.len / SAMPLE).max(1);
        // Wide rows in the share that they have of all.
        let wide = self.cold.wide.iter().step_by(step).map(|wide| wide.cells);
        let narrow = self.tagged().step_by(step).filter(|(lane, _)| !self.is_wide(*lane)).map(|(lane, _)| self.cells_at(lane));
        wide.chain(narrow).collect()
    }

    /// The same rows, with nothing unused but `spare`, in 256ths of a growth, in the shape that fits them. With a different
    /// spare each, shards that are filled alike do not grow all at once.
    pub(super) fn tightened(&self, spare: u8) -> Self {
        if self.len == 0 {
            let mut empty = Self::default();
            empty.cold.notes = self.cold.notes.clone();
            return empty;
        }
        let least = self.len.div_ceil(MOST_LANES);
        let mut tight = self.rebuilt(least + least * usize::from(spare) / (16 * 256), Some(self.fitted(Growth::Tight)));
        tight.far.shrink_to_fit();
        tight.cold.wide.shrink_to_fit(|wide| spread(wide.print));
        tight.cold.notes.shrink_to_fit(|note| spread(note.print));
        tight
    }

    /// Where its two tables lie.
    pub(super) fn places(&self) -> [(usize, Table); 2] {
        [(self.buckets.place(), Table::Buckets), (self.rows.place(), Table::Rows)]
    }

    /// Moves a table into the gap before it.
    pub(super) fn slide(&mut self, table: Table) {
        match table {
            Table::Buckets => self.buckets.slide(),
            Table::Rows => self.rows.slide(),
        }
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The shard, taken apart.
    pub(super) fn image(&self) -> ShardImage {
        let whole = |row: &Whole| WholeRow { print: row.print, cells: row.cells };
        ShardImage {
            tags: self.buckets.iter().flat_map(|bucket| bucket.tags).collect(),
            rows: self.rows.as_slice().to_vec(),
            columns: self.cold.shape.columns(),
            wide: self.cold.wide.iter().map(whole).collect(),
            far: self.far.iter().map(whole).collect(),
            notes: self.cold.notes.iter().map(|note| NoteRow { print: note.print, slot: note.slot, note: note.note }).collect(),
            wide_at_fit: self.cold.wide_at_fit,
        }
    }

    /// The shard of an image, if its parts fit one another.
    pub(super) fn of_image(image: ShardImage) -> Result<Self, Misfit> {
        let (buckets, []) = image.tags.as_chunks::<LANES>() else { return Err(Misfit("part of a bucket")) };
        if image.columns.iter().any(|(_, width)| *width > MAX_WIDTH) {
            return Err(Misfit("a column that is too wide"));
        }
        let reach = REACH.min(buckets.len()) as u16;
        for tag in image.tags.iter().filter(|tag| **tag != 0) {
            match tag >> TAG_BITS {
                0 => return Err(Misfit("a tag without a distance")),
                distance if distance > reach => return Err(Misfit("a tag from outside of its shard")),
                _ => {}
            }
        }
        if image.wide.iter().chain(&image.far).any(|row| row.print >> PRINT_BITS != 0) {
            return Err(Misfit("a print of another shard"));
        }
        let mut shard = Self {
            buckets: Block::zeroed(buckets.len()),
            rows: Bits::of(&image.rows),
            cold: Cold { shape: Shape::of_columns(image.columns), wide_at_fit: image.wide_at_fit, ..Cold::default() }.into(),
            ..Self::default()
        };
        shard.buckets.iter_mut().zip(buckets).for_each(|(bucket, tags)| bucket.tags = *tags);
        shard.tell_passed();
        shard.measure();
        // A shard without rows has allocated nothing.
        let rows = if buckets.is_empty() { 0 } else { Bits::bytes_for(image.tags.len() * shard.row_bits) };
        if shard.rows.as_slice().len() != rows {
            return Err(Misfit("the bytes of the rows"));
        }
        if shard.tagged().filter(|(lane, _)| shard.is_wide(*lane)).count() != image.wide.len() {
            return Err(Misfit("wide rows that no lane tells of"));
        }
        shard.len = shard.tagged().count() + image.far.len();
        image.wide.iter().for_each(|row| insert(&mut shard.cold.wide, Whole { print: row.print, cells: row.cells }));
        image.far.iter().for_each(|row| shard.far.insert(Whole { print: row.print, cells: row.cells }));
        image.notes.iter().for_each(|note| shard.set_note(note.print, note.slot, Some(note.note)));
        Ok(shard)
    }

    /// Tells the buckets of an image which rows went past them.
    fn tell_passed(&mut self) {
        let count = self.buckets.len();
        for number in 0..count {
            for tag in self.buckets[number].tags {
                for steps in 1..usize::from(tag >> TAG_BITS) {
                    self.buckets[(number + count - steps) % count].passed |= Bucket::passing(tag);
                }
            }
        }
    }

    /// The note of a print and slot.
    pub(super) fn note(&self, print: u64, slot: u32) -> Option<u64> {
        self.cold.notes.find(spread(print), |note| note.print == print && note.slot == slot).map(|note| note.note)
    }

    /// Sets the note of a print and slot, or removes it.
    pub(super) fn set_note(&mut self, print: u64, slot: u32, note: Option<u64>) {
        if let Ok(found) = self.cold.notes.find_entry(spread(print), |note| note.print == print && note.slot == slot) {
            found.remove();
        }
        if let Some(note) = note {
            self.cold.notes.insert_unique(spread(print), Note { print, slot, note }, |note| spread(note.print));
        }
    }
}

fn find(rows: &HashTable<Whole>, print: u64, slot: i64) -> Option<Cells> {
    rows.find(spread(print), |row| row.print == print && row.cells[SLOT] == slot).map(|row| row.cells)
}

fn insert(rows: &mut HashTable<Whole>, row: Whole) {
    rows.insert_unique(spread(row.print), row, |row| spread(row.print));
}

fn take(rows: &mut HashTable<Whole>, print: u64, slot: i64) -> Option<Whole> {
    let found = rows.find_entry(spread(print), |row| row.print == print && row.cells[SLOT] == slot);
    found.ok().map(|entry| entry.remove().0)
}

fn take_any(rows: &mut HashTable<Whole>, print: u64) -> Option<Whole> {
    rows.find_entry(spread(print), |row| row.print == print).ok().map(|entry| entry.remove().0)
}
